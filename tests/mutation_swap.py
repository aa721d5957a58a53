"""Mutants in functions, put into a process that has imported the packages: their code replaced."""

from __future__ import annotations

import gc
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType

OPTIMIZED = 0x1  # flag of a function's code; neither a module nor the body of a class has it


class Functions:
    """The functions of a tree's modules that are alive."""

    def __init__(self, top: Path):
        self._alive: dict[str, list[FunctionType]] = defaultdict(list)
        for thing in gc.get_objects():
            if type(thing) is FunctionType:  # asking proxies runs code of theirs
                name = thing.__code__.co_filename
                if name.startswith(str(top)):
                    self._alive[name[len(str(top)) + 1 :]].append(thing)

    def pairs(self, module: str, before: str, after: str) -> list[tuple[FunctionType, CodeType]]:
        """The functions to change and their code with a mutant; none if it changes what runs at
        import, or a function that is not alive.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of `is` with a literal
            file = [compile(text, module, "exec", dont_inherit=True) for text in (before, after)]
        changed = list(_changed(*file))
        if None in changed:
            return []
        found = []
        for old, new in filter(None, changed):
            alive = [f for f in self._alive[module] if f.__code__ == old]
            found += [(f, new) for f in alive if len(new.co_freevars) == len(old.co_freevars)]
        return found


def _changed(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType] | None]:
    """The functions whose code differs; None for a module or class body that differs itself."""
    if old.co_flags & OPTIMIZED:
        if _itself(old) != _itself(new) or old != new:
            yield old, new
    elif _itself(old) != _itself(new):
        yield None
    for inner, outer in zip(_inside(old), _inside(new)):
        yield from _changed(inner, outer)


def _inside(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _itself(code: CodeType) -> tuple[object, ...]:
    """What a code object does, without the functions in it and without line numbers."""
    constants = [repr(c) for c in code.co_consts if not isinstance(c, CodeType)]
    return code.co_code, constants, code.co_names, code.co_varnames, len(_inside(code))
