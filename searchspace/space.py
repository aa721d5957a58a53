"""The search space: what a study file's `space:` may say, and how a candidate is drawn from it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from searchspace.architecture import Architecture, Filters
from searchspace.choices import (
    SLOT,
    DropoutSpace,
    Groups,
    Heads,
    InputSizes,
    Interval,
    Listed,
    NotEmpty,
    Positive,
    Restrict,
    Sizes,
    Texts,
    TrialSampler,
    Width,
    choose,
    dropped_out,
    in_key,
    real,
    spelled_alike,
)
from searchspace.cost import matched_share, widened
from searchspace.exactness import verdict
from searchspace.function.choices import FunctionChoices
from searchspace.function.heads import block_heads, pooling_heads
from searchspace.function.streams import beside_streams, joined_group
from searchspace.geometry import counted
from searchspace.grammar import parse_stages
from searchspace.groups import TRIVIAL, Group
from searchspace.layers import Stage
from searchspace.recipe import Candidate, Recipe, require_trainable
from searchspace.subsampling import Subsampling
from searchspace.training.spaces import (
    Augmentations,
    LossSpace,
    require_latent,
    sample_augmentation,
)
from searchspace.weights.spaces import (
    Governors,
    Relaxations,
    require_pathways,
    require_suiting,
    sample_governor,
    sample_relaxation,
)

Family = Literal["steerable", "plain"]
MOST_MISS = 2.0  # factor by which a matched width may miss
DEFAULT_BACKBONE = "10k3, 10k3 *, 10k3, 10k3, 10k3, 10k3, 10k3"


class SearchSpace(FunctionChoices):
    """Every architecture that a study may try. A value in place of a list fixes that choice."""

    # stages in text form; * marks where the layout's subsampling goes
    backbone: Texts = (DEFAULT_BACKBONE,)
    family: Annotated[tuple[Family, ...], Listed, NotEmpty] = ("steerable", "plain")
    group: Groups = ("C1", "C2", "C4", "D1", "D4")
    restrict: Restrict = Restrict()
    input_size: InputSizes = (28,)
    # one subsampling for all marks, or one for each, separated by |
    layout: Texts = ("max2/2",)
    head: Heads = ("group_max",)
    filters: Annotated[tuple[Filters, ...], Listed, NotEmpty] = ("free",)
    # of the weights of stages whose group they suit, such as +C1, |C1, b2, ~0.3
    relaxation: Relaxations = ("none",)
    gamma: Governors = ("fixed:1.0",)  # what governs the pathways among them
    dropout: DropoutSpace = DropoutSpace()
    equivariance_loss: LossSpace = LossSpace()
    # orientations at which training sees images; None: the training's own
    augment: Augmentations | None = None
    learning_rate: Positive | None = None
    width: Width | None = None
    # first whether windows fit the group exactly, then which size; or the size alone
    size_by: Literal["exactness", "pixels"] = "exactness"

    @classmethod
    def meaning(cls, key: str, choice: Any) -> Hashable:
        """The steps of a layout and the stages of a backbone, however they are spelled."""
        return spelled_alike(key, choice) or super().meaning(key, choice)

    @property
    def pixels(self) -> tuple[int, ...]:
        """Every input size of the space, ascending."""
        sizes = self.input_size
        if isinstance(sizes, Sizes):
            return sizes.pixels
        return tuple(sorted({sizes} if isinstance(sizes, int) else set(sizes)))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of steerable networks, without the trivial one where plain networks are in the
        space.
        """
        groups = tuple(Group.parse(name) for name in self.group)
        return tuple(g for g in groups if g != TRIVIAL) if "plain" in self.family else groups

    @field_validator("learning_rate")
    @classmethod
    def _trainable(cls, value: float | Interval | None) -> float | Interval | None:
        if value is not None:
            bounds = (value.low, value.high) if isinstance(value, Interval) else (value,)
            for rate in bounds:
                require_trainable(rate)
        return value

    @model_validator(mode="after")
    def _something_fits(self, info: ValidationInfo) -> SearchSpace:
        for step in (step for text in self.layout for step in text.split("|")):
            in_key("layout", Subsampling.parse, step.strip())
        groups = self.groups if "steerable" in self.family else ()
        if "steerable" in self.family and not groups:
            raise ValueError(
                "family is steerable, but group has none beside C1; add one, such as C4, "
                "or drop steerable"
            )
        stages = min(len(_backbone_stages(backbone, self.layout[0])) for backbone in self.backbone)
        self.restrict.require_applicable(stages, groups)
        for group in (*groups, *self.stream_groups):
            if not group.on_grid and "basis" not in self.filters:
                raise ValueError(
                    f"group {group} needs filters: [basis] (or [free, basis]); free filters "
                    "know quarter turns and flips only"
                )
        if not any(self._fitting_sizes(b, x) for b in self.backbone for x in self.layout):
            raise ValueError(
                "no architecture of the space fits: "
                f"{self._misfit(self.backbone[0], self.layout[0], self.pixels[-1])}"
            )
        # which takes longer than to read a study: its trials are there, whatever their widths
        if not (info.context or {}).get("reading"):
            self._check_width()
        return self

    @model_validator(mode="after")
    def _everything_applies(self) -> SearchSpace:
        """Refuses choices that no network of the space can have, which would change nothing."""
        groups = set(self.stream_groups)
        if "steerable" in self.family:
            groups |= {*self.groups, *map(Group.parse, self.restrict.to)}
        require_suiting(self.relaxation, groups, self.filters)
        require_pathways(self.gamma, self.relaxation)
        require_latent(self.head, self.equivariance_loss.kind)
        of_backbones = [_backbone_stages(backbone, self.layout[0]) for backbone in self.backbone]
        self.require_shared([*itertools.chain.from_iterable(of_backbones)], groups)
        most = max(map(len, of_backbones))
        self.equivariance_loss.require_stages(most * self.most_streams)
        return self

    def _check_width(self) -> None:
        """Raises ValueError where the smallest network of a group cannot come within a factor of 2
        of the width.
        """
        for architecture in self._extremes() if self.width is not None else ():
            share = self._width_share(architecture)
            if not 1 / MOST_MISS <= share <= MOST_MISS:
                raise ValueError(
                    f"width: {self._width_text(architecture, share)}; choose a "
                    f"{'larger' if share > 1 else 'smaller'} width.to, or another backbone"
                )

    def width_warnings(self, channels: int, classes: int) -> tuple[str, ...]:
        """For each group the worst network whose params or MACs miss `width.to` by more than a
        tenth, in words, at the smallest and largest input size, for images of so many channels and
        classes.
        """
        if self.width is None:
            return ()
        worst: dict[Group, tuple[float, str]] = {}
        for architecture in self._extremes():
            share = self._width_share(architecture, channels, classes)
            miss, group = max(share, 1 / share), architecture.stages[0].group
            if miss > 1.1 and miss > worst.get(group, (0.0, ""))[0]:
                worst[group] = miss, self._width_text(architecture, share)
        return tuple(text for _, text in worst.values())

    def _extremes(self) -> Iterator[Architecture]:
        """Of each backbone, layout and group, the networks of the smallest and largest size."""
        groups = (*(self.groups if "steerable" in self.family else ()),) + (
            (TRIVIAL,) if "plain" in self.family else ()
        )
        for backbone, layout, group in itertools.product(self.backbone, self.layout, groups):
            sizes = self._fitting_sizes(backbone, layout)
            stages = _constrained(backbone, layout, group, None, group)
            filters: Filters = "free" if group.on_grid else "basis"
            for size in dict.fromkeys(sizes[:1] + sizes[-1:]):
                with contextlib.suppress(ValueError):  # of a kernel that the basis cannot express
                    yield Architecture((size, size), stages, filters=filters)

    def _width_share(
        self, architecture: Architecture, channels: int = 1, classes: int = 10
    ) -> float:
        assert self.width is not None
        return matched_share(architecture, self.width.match, self.width.to, channels, classes)

    def _width_text(self, architecture: Architecture, share: float) -> str:
        assert self.width is not None
        off = f"{share:.3g} times" if share > 2 or share < 0.5 else f"{share - 1:+.0%} off"
        return (
            f"networks of {architecture.stages[0].group} at {architecture.size[0]} px come no "
            f"closer to {self.width.to:,} {self.width.match} than {off}"
        )

    def sample(
        self,
        trial: TrialSampler,
        *,
        channels: int = 1,
        classes: int = 10,
        declared: Group | None = None,
    ) -> Candidate:
        """One candidate, drawn from `trial`. Choices are sampled only where they apply.

        `channels` and `classes` of the data decide what a width is; `declared` is the group under
        which the model will be used: a network exact under it has no equivariance loss to weigh,
        and learns nothing from images that its elements moved.
        """
        streams = self.sample_streams(trial)
        group = joined_group([*streams]) if streams else self._sample_group(trial)
        after, to = (None, group) if streams else self._sample_restriction(trial, group)
        fitting = [
            b
            for b in self.backbone
            if any(self._fitting_sizes(b, layout) for layout in self.layout)
        ]
        backbone = choose(trial, "backbone", fitting)
        layouts = [layout for layout in self.layout if self._fitting_sizes(backbone, layout)]
        layout = choose(trial, "layout" if len(fitting) == 1 else f"layout/{backbone}", layouts)
        stages = _constrained(backbone, layout, group, after, to)
        stages = beside_streams(stages, streams) if streams else stages
        size = self._sample_size(trial, stages, self._fitting_sizes(backbone, layout))
        pools = (group if streams else stages[-1].group) != TRIVIAL
        head = choose(trial, "head", pooling_heads(self.head)) if pools else "none"
        filters = self._sample_filters(trial, group)
        stages = sample_relaxation(trial, self.relaxation, stages, filters)
        gamma = sample_governor(trial, self.gamma, stages)
        stages = dropped_out(stages, self.dropout.sample(trial))
        architecture = self.completed(trial, Architecture((size, size), stages, head, filters))
        exact = self._surely_exact(architecture, declared)
        augment = sample_augmentation(trial, self.augment, exact)
        losses, weighting = (), "constant"
        if not exact:
            losses, weighting = self.equivariance_loss.sample(trial, len(stages), declared)
        if not pools and any(loss.kind == "latent" for loss in losses):
            heads = block_heads(self.head)
            architecture = replace(architecture, head=choose(trial, "block_head", heads))
        if self.width is not None:
            architecture = widened(architecture, self.width.match, self.width.to, channels, classes)
        rate = self.learning_rate
        if isinstance(rate, Interval):
            rate = real(trial, "learning_rate", rate)
        return Candidate(architecture, Recipe(losses, rate, augment, weighting, gamma))

    def _sample_group(self, trial: TrialSampler) -> Group:
        family = choose(trial, "family", self.family)
        if family == "plain":
            return TRIVIAL
        return Group.parse(choose(trial, "group", [str(group) for group in self.groups]))

    def _sample_size(
        self, trial: TrialSampler, stages: tuple[Stage, ...], sizes: tuple[int, ...]
    ) -> int:
        """A size in two choices: whether the layout is exact at it, which splits the sizes, and
        which of those.

        One pixel decides exactness, so a sampler that sees pixels has to learn that 26, 28 and 30
        belong together, for each layout anew, and random proposals hardly ever meet an exact
        network.
        """
        if self.size_by == "exactness" and stages[-1].group != TRIVIAL:
            exact = _exact_sizes(stages, sizes)
            if exact and len(exact) < len(sizes):
                sizes = (
                    exact
                    if trial.suggest_categorical("exact", [True, False])
                    else tuple(n for n in sizes if n not in exact)
                )
        if len(sizes) == 1:
            return sizes[0]
        steps = {after - before for before, after in itertools.pairwise(sizes)}
        step = steps.pop() if len(steps) == 1 else None
        name = (
            "input_size"
            if sizes == self.pixels
            else f"input_size/{sizes[0]}-{sizes[-1]}" + (f"/{step}" if step != 1 else "")
        )
        if step is None:
            return trial.suggest_categorical(
                name if sizes == self.pixels else f"input_size/{','.join(map(str, sizes))}",
                list(sizes),
            )
        return trial.suggest_int(name, sizes[0], sizes[-1], step=step)

    def _sample_restriction(self, trial: TrialSampler, group: Group) -> tuple[int | None, Group]:
        targets = [name for name in self.restrict.to if Group.parse(name) < group]
        if not targets:
            return None, group
        after = choose(trial, "restrict_after", self.restrict.after)
        if after == "none":
            return None, group
        return after, Group.parse(choose(trial, f"restrict_to/{group}", targets))

    def _sample_filters(self, trial: TrialSampler, group: Group) -> Filters:
        if not group.on_grid:
            return "basis"
        return choose(trial, "filters", self.filters) if group != TRIVIAL else "free"

    def _surely_exact(self, architecture: Architecture, declared: Group | None) -> bool:
        """Whether the logits are invariant under the declared group before any training."""
        return (
            declared is not None
            and (architecture.head != "none" or architecture.orbit != TRIVIAL)
            and verdict(architecture, declared).exact
        )

    def _fitting_sizes(self, backbone: str, layout: str) -> tuple[int, ...]:
        return tuple(n for n in self.pixels if _fits(backbone, layout, n) is None)

    def _misfit(self, backbone: str, layout: str, size: int) -> str:
        reason = _fits(backbone, layout, size)
        return f"backbone '{backbone}' with layout {layout} at {size} px: {reason}"


@lru_cache(maxsize=4096)
def _backbone_stages(backbone: str, layout: str) -> tuple[Stage, ...]:
    """The stages of `backbone` with the layout's steps in place of its marks. Raises ValueError if
    they do not match.
    """
    steps = [step.strip() for step in layout.split("|")]
    marks = backbone.count(SLOT)
    if (marks == 0 and len(steps) > 1) or (marks and len(steps) not in (1, marks)):
        raise ValueError(
            f"layout '{layout}' has {counted(len(steps), 'step')}, but backbone "
            f"'{backbone}' has {counted(marks, 'mark')} ({SLOT}); write one step for all, "
            "or one for each mark"
        )
    pieces = backbone.split(SLOT)
    text = pieces[0] + "".join(
        steps[min(n, len(steps) - 1)] + piece for n, piece in enumerate(pieces[1:])
    )
    stages, options = in_key("backbone", parse_stages, text)
    if options:
        raise ValueError(
            f"backbone '{backbone}' has options ({', '.join(options)}); they are choices of the "
            "space: head, filters, equivariance_loss"
        )
    if any(stage.group != TRIVIAL for stage in stages):
        raise ValueError(
            f"backbone '{backbone}' names groups; they are choices of the space: group, restrict"
        )
    return stages


@lru_cache(maxsize=4096)
def _constrained(
    backbone: str, layout: str, group: Group, after: int | None, to: Group
) -> tuple[Stage, ...]:
    """The stages under `group`, and those behind stage `after` under `to`."""
    return tuple(
        replace(stage, group=to if after and number > after else group)
        for number, stage in enumerate(_backbone_stages(backbone, layout), start=1)
    )


@lru_cache(maxsize=65536)
def _fits(backbone: str, layout: str, size: int) -> str | None:
    """None if the layout fits an input of `size` pixels, else the reason why not."""
    stages = _backbone_stages(backbone, layout)
    try:
        Architecture((size, size), stages)
    except ValueError as error:
        return str(error)
    return None


@lru_cache(maxsize=4096)
def _exact_sizes(stages: tuple[Stage, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes at which every element of the stages' group that maps the pixel grid onto itself
    survives.
    """
    filters: Filters = "free" if all(stage.group.on_grid for stage in stages) else "basis"
    return tuple(
        n for n in sizes if verdict(Architecture((n, n), stages, filters=filters)).grid_exact
    )
