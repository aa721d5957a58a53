"""One trained network as it is, and what it becomes without training, scored on validation images:
the points of `equisearch soften`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.geometry import Size, size_text
from searchspace.groups import IDENTITY, TRIVIAL, Element, Group
from searchspace.weights.softened import Softened
from studies.errors import StudyError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.instruments.accuracy import Over
    from trainers.instruments.feature_maps import Forward, Normalise
    from trainers.networks.plain import PlainNetwork
    from trainers.networks.soft.softening import Action
    from trainers.settings import Corners

CHANGE_IMAGES = 16  # validation images whose logits are compared, and bounded


def softening_group(name: str) -> Group:
    """The group. Raises StudyError where no weights can be softened under it."""
    group = Group.parse(name)
    if group == TRIVIAL or not group.on_grid:
        why = "are not quarter turns and flips" if group != TRIVIAL else "leave every weight alone"
        raise StudyError(
            f"weights cannot be softened under {group}, whose elements {why}; "
            "name one of C2, C4, D1, D2, D4 with --group"
        )
    return group


def require_shape(group: Group, size: Size) -> None:
    """Raises StudyError where the group does not keep the shape of images of `size`."""
    if size[0] != size[1] and any(e.swaps_axes for e in group.elements):
        raise StudyError(
            f"the images have {size_text(size)} px, a shape that the quarter turns of {group} do "
            "not keep; name one of C2, D1, D2 with --group"
        )


@dataclass(frozen=True)
class DerivedPoint:
    """What a trained network becomes, on validation images."""

    name: str  # what it is called in a table
    softness: float | None  # None: not a softness
    how: str | None  # `Softened` as text; None: the network itself, or no network of its own
    accuracy: float
    symmetry_accuracy: float
    symmetry_accuracy_worst: float
    change: float  # Euclidean, of the logits of an image when it is moved, at most
    bound: float | None  # on that change, computed from the weights; None where there is none


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A network, and what it and what it becomes are scored on."""

    folded: nn.Module
    group: Group  # of the accuracies' elements, under which the weights are softened
    pixels: Tensor
    labels: Tensor
    normalise: Normalise
    seen: tuple[Element, ...]  # by training
    over: Over  # which elements the symmetry accuracy is a mean over
    corners: Corners  # of turned images, as its training had them

    def averaged(self) -> DerivedPoint:
        """The network averaged over the orbit of its images."""
        from trainers.networks.orbit import orbit_average

        how = str(Softened("orbit", (self.group,)))
        return self.point("orbit average", orbit_average(self.folded, self.group), how=how)

    @property
    def few(self) -> Tensor:
        """The images that logits are compared on, floating point in 0..1."""
        from trainers.instruments.feature_maps import pixels

        return pixels(self.pixels[:CHANGE_IMAGES], self.folded)

    def point(
        self,
        name: str,
        model: Forward,
        *,
        how: str | None = None,
        softness: float | None = None,
        bound: float | None = None,
    ) -> DerivedPoint:
        """The scores of a model that takes normalised images."""
        import torch

        from trainers.actions import act
        from trainers.instruments.accuracy import summarise
        from trainers.instruments.predictions import predict_elements
        from trainers.networks.convolution import channels_last

        def prepared(batch: Tensor) -> Tensor:
            return channels_last(self.normalise(batch))

        elements, few = self.group.elements, self.few
        found = predict_elements(
            model, self.pixels, elements, normalise=prepared, corners=self.corners
        )
        symmetry = summarise(found, self.labels, self.group, self.seen, over=self.over)
        with torch.no_grad():
            still = model(prepared(few))
            moved = [model(prepared(act(few, e, self.corners))) for e in elements if e != IDENTITY]
        changes = [(logits - still).norm(dim=1).max() for logits in moved]
        return DerivedPoint(
            name,
            softness,
            how,
            symmetry.accuracy.value,
            symmetry.mean.value,
            symmetry.worst[1].value,
            float(torch.stack(changes).max()),
            bound,
        )


@dataclass(frozen=True, kw_only=True)
class ScoredNetwork(Scored):
    """A trained network of an architecture."""

    architecture: Architecture
    folded: PlainNetwork
    acting: Callable[[], Sequence[Action]]  # how the group acts on the channels; ValueError
    at: Callable[[float], PlainNetwork]  # the folded network at a softness; ValueError

    def at_softness(self, softness: float) -> DerivedPoint:
        """The network at a softness. Raises ValueError where the group does not act on its
        channels.
        """
        acting, folded = self.acting(), self.at(softness)
        exact = _exact(self.architecture, acting, self.group)
        bound = self._bound(folded, acting) if exact else None
        how = None if softness == 1 else str(Softened("softness", (self.group,), softness))
        return self.point(f"{softness:g}", folded, how=how, softness=softness, bound=bound)

    def unnormalised(self) -> ScoredNetwork:
        """The same for models that take images in 0..1."""
        return replace(self, normalise=lambda images: images)

    def _bound(self, folded: PlainNetwork, acting: Sequence[Action]) -> float | None:
        """The largest bound on a change over the images that are compared; None where a layer has
        none.
        """
        import torch

        from trainers.actions import act
        from trainers.networks.soft.logit_bound import logit_bounds

        few, elements = self.few, self.group.elements
        moved = torch.cat([self.normalise(act(few, e, self.corners)) for e in elements])
        try:
            bounds = logit_bounds(folded, acting, self.group, moved).view(len(elements), -1)
        except ValueError:
            return None
        return float((bounds[0] + bounds.amax(0)).max())


def _exact(architecture: Architecture, acting: Sequence[Action], group: Group) -> bool:
    """Whether the strict network is invariant under the group: its layout keeps all elements."""
    fields = acting[-1].fields
    stages = tuple(
        replace(
            s,
            relaxation=None,
            **({} if group <= s.group else {"group": fields, "fields": s.channels // fields.order}),
        )
        for s in architecture.stages
    )
    strict = replace(architecture, stages=stages, head="group_max", filters="free", orbit=TRIVIAL)
    return verdict(strict, group).exact
