"""The central value: an `Architecture` says which network is built, fully explicit, immutable and
with a text form.

    >>> a = Architecture.parse("28px: 10k3@C4, 10k3 max2/2, 10k4p0")
    >>> str(a.group), a.sizes, Architecture.parse(str(a)) == a
    ('C4', ((28, 28), (14, 14), (11, 11)), True)

The text form is described in `searchspace.grammar`; sizes and remainders come from
`searchspace.geometry`. How an architecture is trained is a `searchspace.recipe.Recipe`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import and_
from typing import Literal, get_args

from searchspace.function.coordinates import Coordinates, check_coordinates
from searchspace.function.heads import block_group, checked_head, num_features, require_plain
from searchspace.function.invariant import simplest_share
from searchspace.function.orbit import check_orbit
from searchspace.geometry import MOST_PIXELS, whole_number
from searchspace.groups import TRIVIAL, Group
from searchspace.layers import Layer, Stage, layers_of, one_of
from searchspace.subsampling import Subsampling

Filters = Literal["free", "basis"]
FILTERS = get_args(Filters)
MOST_REPEATED = 2000  # convolutions or blocks of all stages
MOST_WEIGHTS = 10**10  # of all convolutions: 40 GB


@dataclass(frozen=True, repr=False)
class Architecture:
    """The full description of one network, without its weights.

    `size` is (height, width) in pixels; `entry` an optional resize or crop of the input; `head` how
    the |G| channels of a field become one feature after the spatial mean (`none`: they stay apart,
    and the logits are not invariant; `block_max:C4`: `searchspace.function.heads`); `filters` the
    parametrisation: `free` kernels that the elements transform (quarter turns and flips, any kernel
    size) or escnn's band-limited `basis` (any group). With an `orbit`, the logits are the mean of
    those of the image moved by each of its elements, in training too. With `coordinates`, the first
    convolution sees those of the pixel grid behind the entry as further channels. Raises ValueError
    where no such network can be built.
    """

    size: tuple[int, int]
    stages: tuple[Stage, ...]
    head: str = "group_max"
    filters: Filters = "free"
    entry: Subsampling | None = None
    orbit: Group = TRIVIAL
    coordinates: Coordinates = "none"
    # all that have a window, in order, with sizes and remainders
    layers: tuple[Layer, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("an architecture needs at least one stage, such as 10k3")
        if self.stages[0].stream:  # there is nothing before it
            self.__dict__["stages"] = (replace(self.stages[0], stream=False), *self.stages[1:])
        if any(s.invariant and s.group == TRIVIAL for s in self.stages):  # nothing to pool over
            self.__dict__["stages"] = tuple(
                replace(s, invariant=0.0) if s.group == TRIVIAL else s for s in self.stages
            )
        repeats = sum(stage.repeats for stage in self.stages)
        if repeats > MOST_REPEATED:
            raise ValueError(
                f"the stages have {repeats:,} convolutions or blocks; they must have at most "
                f"{MOST_REPEATED:,} together"
            )
        object.__setattr__(self, "head", checked_head(self.head))
        for stage in self.lasts:
            require_plain(self.head, stage.group)
        one_of(self.filters, FILTERS, "filters")
        for name, pixels in zip(("height", "width"), self.size):
            whole_number(pixels, 1, f"the input's {name}")
            if pixels > MOST_PIXELS:
                raise ValueError(
                    f"the input's {name} is {pixels} pixels; it must be at most {MOST_PIXELS}; "
                    "cut or resize larger images"
                )
        if self.entry is not None and not self.entry.rules.of_input:
            raise ValueError(
                f"the input can be changed by resize or crop, not by {self.entry.kind}"
            )
        self._check_groups()
        check_orbit(self.orbit, self.size)
        check_coordinates(self.coordinates)
        # raises ValueError where a layer does not fit
        self.__dict__["layers"] = layers_of(self.size, self.entry, self.stages)
        weights = sum(
            into * out * layer.kernel**2
            for layer in self.layers
            if layer.weights is not None
            for into, out in (layer.weights,)
        )
        if weights > MOST_WEIGHTS:
            raise ValueError(
                f"the convolutions have {weights:.1e} weights; they must have at most "
                f"{MOST_WEIGHTS:.0e}, which take 40 GB; choose fewer fields or smaller kernels"
            )

    def _check_groups(self) -> None:
        previous = self.stages[0].group
        checked = None
        for number, stage in enumerate(self.stages, start=1):
            group, step = stage.group, stage.subsampling
            if group is not checked or stage.stream:
                self._check_group(number, group, group if stage.stream else previous)
                previous = checked = group
            if self.filters == "basis" and (
                stage.kernel == 2 or (step is not None and step.trained and step.kernel == 2)
            ):
                raise ValueError(
                    f"stage {number} has kernel 2, for which the band-limited basis is empty; "
                    "use filters=free or kernel 3"
                )
            if self.filters == "basis" and stage.relaxation is not None:
                raise ValueError(
                    f"stage {number} is relaxed ({stage.annotation}), and filters=basis has no "
                    "relaxations; use filters=free"
                )

    def _check_group(self, number: int, group: Group, previous: Group) -> None:
        if not group <= previous:
            raise ValueError(
                f"stage {number} has group {group}, which is not a subgroup of stage "
                f"{number - 1}'s {previous}; "
                f"choose one of {', '.join(map(str, previous.subgroups()))}"
            )
        if self.filters == "free" and not group.on_grid:
            raise ValueError(
                f"stage {number} has group {group}, which free filters cannot express on a "
                "pixel grid; "
                "use filters=basis, or one of C1, C2, C4, D1, D2, D4"
            )

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """The architecture that `text` describes (`searchspace.grammar`). Raises ValueError that
        names the part in error.

        Options of a recipe (`loss=`, `learning_rate=`) may stand behind it, as in the text of a
        candidate: they are checked and left out.
        """
        from searchspace.grammar import parse_candidate

        return parse_candidate(text).architecture

    def __str__(self) -> str:
        from searchspace.grammar import format_architecture

        return format_architecture(self)

    def __repr__(self) -> str:
        return f"Architecture.parse({str(self)!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the text form and a drawing of the sizes along the network."""
        from searchspace.drawing import architecture_html

        return architecture_html(self)

    @cached_property
    def streams(self) -> tuple[Architecture, ...]:
        """Each stream as an architecture of its own, without the orbit average; the architecture
        itself where there is one.
        """
        starts = [0, *(n for n, stage in enumerate(self.stages) if stage.stream)]
        if len(starts) == 1:
            return (self,)
        ends = [*starts[1:], len(self.stages)]
        return tuple(
            replace(self, stages=self.stages[start:end], orbit=TRIVIAL)
            for start, end in zip(starts, ends)
        )

    @cached_property
    def lasts(self) -> tuple[Stage, ...]:
        """The last stage of each stream."""
        following = (*self.stages[1:], None)
        return tuple(s for s, after in zip(self.stages, following) if not after or after.stream)

    @property
    def features(self) -> int:
        """How many features the linear layer reads, of all streams."""
        return sum(num_features(self.head, s.channels, s.group.order) for s in self.lasts)

    @property
    def group(self) -> Group:
        """The group of the last stage, or what those of all streams share: the one under which
        features are built to be equivariant from end to end.
        """
        return reduce(and_, (stage.group for stage in self.lasts))

    @cached_property
    def certain_groups(self) -> tuple[Group, ...]:
        """For each stage, the group under which its maps are exact by construction, windows apart:
        what the relaxations up to it leave of its group.
        """
        groups: list[Group] = []
        for stage in self.stages:
            own = stage.certain_group
            groups.append(own if not groups or stage.stream else groups[-1] & own)
        return tuple(groups)

    @property
    def certain_group(self) -> Group:
        """The part of `group` that is built in from end to end whatever the parameters are; all of
        it without relaxations.
        """
        lasts = zip(self.certain_groups, self.stages, (*self.stages[1:], None))
        return reduce(and_, (own for own, _, after in lasts if not after or after.stream))

    @property
    def softened(self) -> bool:
        """True if the weights of some stage are equivariant in part."""
        return any(stage.relaxation is not None for stage in self.stages)

    @cached_property
    def constrained(self) -> Architecture:
        """The same architecture without its relaxations."""
        if not self.softened:
            return self
        return replace(self, stages=tuple(replace(s, relaxation=None) for s in self.stages))

    @property
    def symmetry(self) -> Group:
        """The group under which exactness is of interest: the one that is built in, by streams
        together, or that of the orbit average where that is larger.
        """
        from searchspace.function.streams import joined_group

        return max(joined_group([stage.group for stage in self.lasts]), self.orbit)

    @property
    def family(self) -> Literal["plain", "steerable"]:
        """`plain` if no stage has a group, `steerable` otherwise."""
        plain = all(stage.group == TRIVIAL for stage in self.stages)
        return "plain" if plain else "steerable"

    @property
    def size_entered(self) -> tuple[int, int]:
        """(height, width) of the image behind the entry, pixels."""
        return self.size if self.entry is None else self.layers[0].size_out

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the feature maps after each stage, pixels."""
        after = {layer.stage: layer.size_out for layer in self.layers if layer.branch == "main"}
        return tuple(after[number] for number in range(1, len(self.stages) + 1))

    def with_size(self, height: int, width: int | None = None) -> Architecture:
        """The same architecture for another input size. Raises ValueError if its layout does not
        fit.
        """
        return replace(self, size=(height, height if width is None else width))

    def canonical(self, *, keep_repeats: bool = False, keep_order: bool = False) -> Architecture:
        """The simplest architecture that builds the same network; equal networks by description
        have equal canonical forms.

        Repeats are written out unless `keep_repeats`, streams stand in the order of their texts
        unless `keep_order`, a head over a trivial group is none, and
        steps without effect go: a dilation of one pixel, a padding mode without padding, a pool of
        one pixel, rounding up where nothing is rounded; an adaptive pool to an integer fraction is
        the ordinary pool.
        """
        from searchspace.function.streams import in_order

        stages: list[Stage] = []
        for number, stage in enumerate(self.stages, start=1):
            # of a stage's main branch, subsampling excluded
            convolved = [
                layer.size_out
                for layer in self.layers
                if layer.stage == number and layer.name.startswith("conv") and "/" not in layer.name
            ][-1]
            step = stage.subsampling
            stage = replace(
                stage,
                subsampling=None if step is None else step.simplest(convolved),
                dilation=1 if stage.kernel == 1 else stage.dilation,
                padding_mode="zeros" if stage.padding == (0, 0) else stage.padding_mode,
                invariant=simplest_share(stage.invariant, stage.fields, stage.group.order),
            )
            stages.extend([stage] if keep_repeats else stage.written_out())
        return replace(
            self,
            stages=tuple(stages) if keep_order else in_order(stages),
            entry=None if self.entry is None else self.entry.simplest(self.size),
            head="none"
            if all(s.group == TRIVIAL for s in self.lasts) and not block_group(self.head)
            else self.head,
        )
