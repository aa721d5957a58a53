"""What may be built and which symmetries it keeps: architectures, verdicts, costs and spaces.

A name is imported when it is first used, so that a command which only reads does not import all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
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

# Public name -> its module in this package.
_WHERE = {
    "Architecture": "architecture",
    "Candidate": "recipe",
    "Cost": "cost",
    "Element": "groups",
    "Group": "groups",
    "KINDS": "subsampling",
    "Loss": "recipe",
    "PUBLISHED": "published",
    "Recipe": "recipe",
    "SearchSpace": "space",
    "Stage": "layers",
    "Subsampling": "subsampling",
    "Verdict": "exactness",
    "breakings": "repairs",
    "exact_sizes": "exactness",
    "repair_layouts": "repairs",
    "repair_sizes": "repairs",
    "verdict": "exactness",
    "widened": "cost",
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


def lazy(
    package: dict[str, Any], where: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that imports a public name at its first use.

    `package` is the package's `globals()`, which hold the name from then on. `where`: public name
    -> "module", or "module:name" where the module calls it otherwise. Raises AttributeError for
    other names.
    """
    own = package["__name__"]

    def __getattr__(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module '{own}' has no attribute '{name}'")
        module, _, inner = where[name].partition(":")
        package[name] = getattr(importlib.import_module(f"{own}.{module}"), inner or name)
        return package[name]

    def __dir__() -> list[str]:
        return sorted({*package, *where})

    return __getattr__, __dir__


__getattr__, __dir__ = lazy(globals(), _WHERE)
