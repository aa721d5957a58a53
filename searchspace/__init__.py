"""What may be built and which symmetries it keeps: architectures, verdicts, costs and spaces."""

from searchspace.architecture import Architecture, Stage
from searchspace.cost import Cost, widened
from searchspace.exactness import Verdict, exact_sizes, verdict
from searchspace.groups import Element, Group
from searchspace.published import PUBLISHED
from searchspace.recipe import Candidate, Loss, Recipe
from searchspace.repairs import breakings, repair_layouts, repair_sizes
from searchspace.space import SearchSpace
from searchspace.subsampling import KINDS, Subsampling

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
