"""Messages are plain technical English: every text of the packages that a person may read (errors,
notes, help, pages) is taken from the source, and idioms are refused.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("searchspace", "trainers", "studies")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# What is refused -> what to write.
IDIOMS = {
    # "there is no trial 7" is English, "'x' is no duration" is not
    r"(?<!\bthere )\b(?:is|are|was|were) no (?!longer\b|more\b)": "'x' is not a duration",
    r"\bcame(?:[;,.:)]|$)": "got a mapping",
    r"\b(?:no|some)body\b": "no process, another process, another user",
    r"\b(?:is|are|was|were) (?:asked|told)\b": "say who does it, in the active voice",
    r"\bwhat is (?:known|kept|found|shown|told|asked)\b": "the noun",
    r"\banew\b": "again",
    r"(?<!\bmodel )\bcards?\b": "GPU, or model card",
    r"\bsecond chances?\b": "promotions of stopped trials",
    r"\bpretend": "mock",
}


def messages(source):
    """(line, text) of every string that is not a docstring and has more than one word; the values
    in a formatted one stand as {}.
    """
    tree, skipped = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):  # docstrings, and texts that do nothing
            skipped.add(node.value)
        if isinstance(node, ast.JoinedStr):
            skipped.update(value for value in node.values if isinstance(value, ast.Constant))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
            yield node.lineno, "".join(map(str, parts))


def help_texts(source):
    """(line, docstring) of every command: typer prints it as help."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and any(
            "command" in ast.unparse(decorator) for decorator in node.decorator_list
        ):
            yield node.lineno, ast.get_docstring(node) or ""


def idioms(source):
    """The idioms of a module, each with its line and what to write instead."""
    return [
        f"line {line}: {text!r}: write: {instead}"
        for line, text in [*messages(source), *help_texts(source)]
        for pattern, instead in IDIOMS.items()
        if re.search(pattern, text)
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_messages_are_plain_english(path):
    assert idioms(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError(f\"'{text}' is no duration; write seconds\")",
        'raise ValueError(f"{kind} came; give a mapping")',
        'note("nobody drives it")',
        'Finding("GPU", "ok", f"trials share them, up to {n} a card")',
        '@app.command()\ndef start():\n    """What is known of a study."""'.replace("What", "what"),
        'x = "the worker is told of trials"',
    ],
)
def test_idioms_are_seen(source):
    assert idioms(source)


def test_plain_english_is_not_refused():
    source = (
        '"""Module: nobody."""\nraise ValueError(f"there is no trial {n}; it is no longer there; '
        'see the model card")'
    )
    assert idioms(source) == []
