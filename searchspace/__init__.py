"""What may be built and which symmetries it keeps: architectures, verdicts, costs and spaces.

A name is imported when it is first used, so that a command which only reads does not import all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from searchspace.architecture import Architecture
    from searchspace.cost import Cost, widened
    from searchspace.exactness import Verdict, exact_sizes, verdict
    from searchspace.groups import Element, Group
    from searchspace.layers import Stage
    from searchspace.published import PUBLISHED
    from searchspace.recipe import Candidate, Loss, Recipe
    from searchspace.repairs import breakings, repair_layouts, repair_sizes
    from searchspace.space import SearchSpace
    from searchspace.subsampling import KINDS, Subsampling

# Public name -> its module.
_WHERE = {
    "Architecture": "searchspace.architecture",
    "Candidate": "searchspace.recipe",
    "Cost": "searchspace.cost",
    "Element": "searchspace.groups",
    "Group": "searchspace.groups",
    "KINDS": "searchspace.subsampling",
    "Loss": "searchspace.recipe",
    "PUBLISHED": "searchspace.published",
    "Recipe": "searchspace.recipe",
    "SearchSpace": "searchspace.space",
    "Stage": "searchspace.layers",
    "Subsampling": "searchspace.subsampling",
    "Verdict": "searchspace.exactness",
    "breakings": "searchspace.repairs",
    "exact_sizes": "searchspace.exactness",
    "repair_layouts": "searchspace.repairs",
    "repair_sizes": "searchspace.repairs",
    "verdict": "searchspace.exactness",
    "widened": "searchspace.cost",
}
__all__ = [
    "KINDS",
    "PUBLISHED",
    "Architecture",
    "Candidate",
    "Cost",
    "Element",
    "Group",
    "Loss",
    "Recipe",
    "SearchSpace",
    "Stage",
    "Subsampling",
    "Verdict",
    "breakings",
    "exact_sizes",
    "repair_layouts",
    "repair_sizes",
    "verdict",
    "widened",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'searchspace' has no attribute '{name}'")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
