"""The parts of a study file's `space:`: sizes, ranges, lists of choices, and what they refuse."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from searchspace.cost import Match
from searchspace.function.heads import checked_head
from searchspace.geometry import MOST_PIXELS, counted
from searchspace.grammar import parse_stages
from searchspace.groups import Group
from searchspace.layers import Stage
from searchspace.subsampling import Subsampling
from searchspace.training.dropout import NO_DROPOUT, Dropout, DropoutKind

_Made = TypeVar("_Made")
SLOT = "*"  # where a backbone takes its subsampling from the layout
MOST_SIZES = 1024  # whether a network fits is looked at for each
MOST_WIDTH = 10**13  # parameters, MACs or fields


def require_once(
    name: str, choices: Sequence[Any], meaning: Callable[[Any], Hashable] = lambda choice: choice
) -> None:
    """Raises ValueError where two of the choices listed under `name` have the same meaning."""
    seen: dict[Hashable, Any] = {}
    for choice in choices:
        key = meaning(choice)
        if key in seen:
            what = (
                f"'{choice}' twice"
                if seen[key] == choice
                else f"'{seen[key]}' and '{choice}', which are the same"
            )
            raise ValueError(
                f"{name} lists {what}; choices are drawn equally often, so that the second adds "
                "nothing: name it once"
            )
        seen[key] = choice


def spelled_alike(key: str, choice: str) -> Hashable:
    """What is the same for all spellings of a layout, or of a backbone; None for anything else."""
    with contextlib.suppress(ValueError):  # which is said where it is looked at
        if key == "layout":
            steps = tuple(Subsampling.parse(step.strip()) for step in choice.split("|"))
            return steps[:1] if len(set(steps)) == 1 else steps
        if key == "backbone":
            marks = tuple(stage.count(SLOT) for stage in choice.split(","))
            return parse_stages(choice.replace(SLOT, " "))[0], marks
    return None


class Section(BaseModel):
    """A mapping of a study file: frozen, with no other keys and no infinite numbers. A list of
    choices names each once, except in studies that are there already.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _once(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, tuple) and not (info.context or {}).get("reading"):
            name = info.field_name or ""
            require_once(name, value, lambda choice: cls.meaning(name, choice))
        return value

    @classmethod
    def meaning(cls, key: str, choice: Any) -> Hashable:
        """What is the same for two spellings of one choice under `key`."""
        return choice


def listed(value: Any) -> Any:
    """A tuple of the value, or of those of a list; None is `none`."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    return tuple("none" if item is None else item for item in values)


def group_names(value: Any) -> tuple[str, ...]:
    """The names of groups, each spelled as its group prints. Raises ValueError for another name."""
    return tuple(str(Group.parse(name)) for name in listed(value))


def _form(mapping: str) -> Discriminator:
    """Chooses by the form of a value which type it must have, before any is tried: one complaint
    for one mistake.
    """

    def chosen(value: Any) -> str:
        if isinstance(value, (dict, BaseModel)):
            return mapping
        return "list()" if isinstance(value, (list, tuple)) else "number()"

    return Discriminator(chosen)


# one value in place of a list fixes a choice
Listed = BeforeValidator(listed)
NotEmpty = Field(min_length=1)
Texts = Annotated[tuple[str, ...], Listed, NotEmpty]
Heads = Annotated[tuple[Annotated[str, AfterValidator(checked_head)], ...], Listed, NotEmpty]
Groups = Annotated[tuple[str, ...], BeforeValidator(group_names), NotEmpty]
Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS, strict=True)]


class Sizes(Section):
    """Input sizes in pixels, from `low` to `high` inclusive."""

    low: Pixels
    high: Pixels
    step: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Sizes:
        if self.low > self.high:
            raise ValueError(
                f"low is {self.low} and high is {self.high}; low must not be above high"
            )
        if len(self.pixels) > MOST_SIZES:
            raise ValueError(
                f"low, high and step give {len(self.pixels)} sizes; there must be at most "
                f"{MOST_SIZES}; take a larger step or a smaller high"
            )
        return self

    @property
    def pixels(self) -> tuple[int, ...]:
        """Every size, ascending."""
        return tuple(range(self.low, self.high + 1, self.step))


class Interval(Section):
    """Real numbers from `low` to `high`, drawn evenly, or evenly in the logarithm."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if self.low > self.high:
            raise ValueError(
                f"low is {self.low:g} and high is {self.high:g}; low must not be above high"
            )
        return self


_ListOfSizes = Annotated[tuple[Pixels, ...], Field(min_length=1, max_length=MOST_SIZES)]
_OneSize = Annotated[Pixels, AfterValidator(lambda pixels: (pixels,))]
InputSizes = Annotated[
    Annotated[Sizes, Tag("Sizes")]
    | Annotated[_ListOfSizes, Tag("list()")]
    | Annotated[_OneSize, Tag("number()")],
    _form("Sizes"),
]
Positive = Annotated[
    Annotated[Interval, Tag("Interval")]
    | Annotated[float, Field(gt=0, strict=True), Tag("number()")]
    | Annotated[float, Field(strict=True), Tag("list()")],  # no list is one
    _form("Interval"),
]


def in_key(key: str, read: Callable[[str], _Made], text: str) -> _Made:
    """What `read` makes of a text. Raises its ValueError with the key that gave the text."""
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


class Restrict(Section):
    """Equivariance relaxed in the deeper stages: from the stage behind `after` on, the group is one
    of `to`.
    """

    after: Annotated[tuple[Literal["none"] | int, ...], NotEmpty] = ("none",)
    to: Groups = ("C1",)

    @field_validator("after", mode="before")
    @classmethod
    def _stages(cls, value: Any) -> Any:
        stages = listed(value)
        for stage in stages:
            if stage != "none" and (
                isinstance(stage, bool) or not isinstance(stage, int) or stage < 1
            ):
                raise ValueError(
                    f"'{stage}' is not a stage to restrict after; write none or a stage's number, "
                    "1 or more"
                )
        return stages

    def require_applicable(self, stages: int, groups: Sequence[Group]) -> None:
        """Raises ValueError for a stage or a group that no network of that many stages, which
        begins under one of `groups`, can be restricted after or to.
        """
        for after in self.after:
            if after != "none" and after >= stages:
                raise ValueError(
                    f"restrict after stage {after}, but the backbone has "
                    f"{counted(stages, 'stage')}; "
                    f"choose {f'1 to {stages - 1}, or ' if stages > 1 else ''}none"
                )
        for name in self.to if set(self.after) != {"none"} else ():
            if groups and not any(Group.parse(name) < group for group in groups):
                raise ValueError(
                    f"restrict to {name}, which is not a proper subgroup of any group of the space "
                    f"({', '.join(map(str, groups))}); choose one of "
                    f"{', '.join(sorted({str(s) for g in groups for s in g.subgroups()[:-1]}))}"
                )


_Rate = Annotated[float, Field(strict=True), AfterValidator(lambda r: Dropout("values", r).rate)]
_ListOfRates = Annotated[tuple[_Rate, ...], NotEmpty]
_OneRate = Annotated[_Rate, AfterValidator(lambda rate: (rate,))]
Rates = Annotated[
    Annotated[Interval, Tag("Interval")]
    | Annotated[_ListOfRates, Tag("list()")]
    | Annotated[_OneRate, Tag("number()")],
    _form("Interval"),
]


class DropoutSpace(Section):
    """Kinds of dropout, and the rates of those that are not none: of every stage whose backbone
    names none of its own.
    """

    kind: Annotated[tuple[DropoutKind, ...], Listed, NotEmpty] = ("none",)
    rate: Rates = (0.3,)

    @field_validator("rate")
    @classmethod
    def _below_one(cls, value: Any) -> Any:
        if isinstance(value, Interval):
            Dropout("values", value.high)
        return value

    def sample(self, trial: TrialSampler) -> Dropout:
        """The dropout of the stages that have none of their own."""
        kind = choose(trial, "dropout", self.kind)
        if kind == "none":
            return NO_DROPOUT
        if isinstance(self.rate, Interval):
            return Dropout(kind, real(trial, "dropout_rate", self.rate))
        return Dropout(kind, choose(trial, "dropout_rate", self.rate))


def dropped_out(stages: tuple[Stage, ...], dropout: Dropout) -> tuple[Stage, ...]:
    """The stages with `dropout` in each that has none of its own."""
    return tuple(replace(s, dropout=s.dropout or dropout) for s in stages) if dropout else stages


class Width(Section):
    """How wide networks are, so that comparisons are fair: fields are scaled until params, MACs or
    fields match.
    """

    match: Match
    # trained parameters | multiply-accumulates per image | fields of the first stage
    to: int = Field(ge=1, le=MOST_WIDTH)


class TrialSampler(Protocol):
    """What `SearchSpace.sample` calls of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: list) -> Any:
        """One of `choices`."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """A whole number from `low` to `high` in steps."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number from `low` to `high`, even in the logarithm with `log`."""
        ...


def choose(trial: TrialSampler, name: str, choices: Any) -> Any:
    """One of `choices`; it is sampled only where there are two or more."""
    options = list(dict.fromkeys(choices))
    return options[0] if len(options) == 1 else trial.suggest_categorical(name, options)


def real(trial: TrialSampler, name: str, interval: Interval) -> float:
    """A number of the interval with three digits, so that text forms stay readable."""
    if interval.low == interval.high:
        return interval.low
    drawn = float(f"{trial.suggest_float(name, interval.low, interval.high, log=interval.log):.3g}")
    return min(max(drawn, interval.low), interval.high)
