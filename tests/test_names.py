"""A public name of the three packages says one thing: it is defined in one module."""

import ast
from collections import defaultdict

from test_rules import MODULES, ROOT

# Names that two or more modules define, and why.
SHARED = {
    "main": "the entry point of a program",
    "log": "a module's own logger",
    "train": "`trainers.train` trains a network, `studies.train` one under a study",
    "convolve": "each way to compute a convolution answers to it",
    "suits": "each way to compute a convolution says whether it applies",
}
# A command's function has the command's name, and so has the function that does its work.
COMMANDS = ROOT / "studies" / "cli"


def public(tree):
    """The public names that a module defines at its top level, imports left out."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def is_command(path, tree, name):
    """Whether the module registers a function of this name as a command."""
    return path.parent == COMMANDS and any(
        isinstance(node, ast.FunctionDef)
        and node.name == name
        and any("command" in ast.unparse(decorator) for decorator in node.decorator_list)
        for node in tree.body
    )


def test_a_public_name_is_defined_in_one_module():
    modules = defaultdict(list)
    for path in MODULES:
        tree = ast.parse(path.read_text())
        if path.name != "__init__.py":
            for name in {*public(tree)}:
                if not is_command(path, tree, name):
                    modules[name].append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in modules.items() if len(paths) > 1}
    assert not {name: paths for name, paths in twice.items() if name not in SHARED}
    assert not {*SHARED} - {*twice}, "no longer shared: take it out of the list"
