"""What `equisearch check` answers about an architecture before any training: exactness, costs,
repairs. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from searchspace.architecture import Architecture
from searchspace.cost import Cost, cost
from searchspace.drawing import draw_verdict
from searchspace.exactness import Verdict, exact_sizes, places, verdict
from searchspace.function.answers import (
    averaged_line,
    idle_parts,
    invariant_lines,
    near_lines,
    own_verdicts,
    pooled_lines,
    relaxed_away,
    repairs_heading,
    sizes_lines,
    streams_lines,
)
from searchspace.geometry import size_text
from searchspace.groups import TRIVIAL, Element, Group
from searchspace.published import PUBLISHED, Published
from searchspace.recipe import Candidate, Recipe
from searchspace.repairs import Proposal, breakings, repair_layouts, repair_sizes
from searchspace.training.losses import savings
from studies.markup import Html, html, joined_html

MOST_PLACES = 3  # of one element's losses that are told


@dataclass(frozen=True)
class Checked:
    """The answer to a check; `text` for people, `as_dict` for programs."""

    architecture: Architecture
    verdict: Verdict  # for the declared group, else the network's own
    cost: Cost
    channels: int  # of the images
    classes: int
    # sizes that shift no window: exact, unless stages are relaxed
    unshifted_sizes: tuple[tuple[int, int], ...]
    repairs: tuple[Proposal, ...]  # where it is broken: sizes, then layouts
    breaking: tuple[Proposal, ...]  # where it is exact: how to break it on purpose
    published: Published | None = None  # the network it was named after
    preset: str | None = None  # its name
    # how it is trained, as far as the text says
    recipe: Recipe = field(default_factory=Recipe)
    idle: tuple[str, ...] = ()  # what the text says without effect

    @property
    def exact_sizes(self) -> tuple[tuple[int, int], ...]:
        """Input sizes (height, width) nearby at which the network is exact, nearest first: none of
        relaxed stages, which are exact at no size.
        """
        return () if relaxed_away(self.architecture) else self.unshifted_sizes

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the keys are stable.

        `exact`: every element of `group` survives in the features. `surviving` is a group's name.
        Sizes and remainders of square maps are one number, else [height, width].
        """
        ruling = self.verdict
        return {
            "architecture": str(self.architecture),
            "preset": self.preset,
            "family": self.architecture.family,
            "group": str(ruling.group),
            "orbit": str(self.architecture.orbit),
            "coordinates": self.architecture.coordinates,
            "streams": [
                {
                    "group": str(own.group),
                    "exact": own.exact,
                    "surviving_elements": _names(own.surviving),
                    "invariant_elements": _names(own.invariant),
                }
                for own in own_verdicts(self.architecture)
            ],
            "exact": ruling.exact,
            "grid_exact": ruling.grid_exact,
            "surviving": ruling.surviving_group,
            "surviving_elements": _names(ruling.surviving),
            "invariant_elements": _names(ruling.invariant),
            "near_elements": _names(ruling.near),
            "relaxations": self._relaxations,
            "stages": self._stages,
            "breaks": self._breaks,
            "exact_sizes": self._listed(self.exact_sizes),
            "unshifted_sizes": self._listed(self.unshifted_sizes),
            "repairs": [_proposal(p) for p in self.repairs],
            "breaking": [_proposal(p) for p in self.breaking],
            "channels": self.channels,
            "classes": self.classes,
            "params": self.cost.params,
            "expanded_params": self.cost.expanded_params,
            "macs": self.cost.macs,
            "savings": list(self._savings),
            "without_effect": list(self.idle),
        }

    def _listed(self, sizes: tuple[tuple[int, int], ...]) -> list[int | list[int]]:
        square = self.architecture.size[0] == self.architecture.size[1]
        return [size[0] if square else list(size) for size in sizes]

    @property
    def _savings(self) -> tuple[str, ...]:
        return savings(self.recipe.losses, [s.channels for s in self.architecture.stages])

    @property
    def _stages(self) -> list[dict[str, Any]]:
        groups = [
            self.architecture.stages[0].group,
            *(stage.group for stage in self.architecture.stages),
        ]
        left = self.verdict.after_stages
        return [
            {
                "stage": layer.stage,
                "layer": layer.name,
                "group": str(groups[layer.stage]),
                "size": _plain(layer.size_out),
                "remainder": _plain(layer.remainder),
                "surviving_elements": _names(left[layer.stage]),
            }
            for layer in self.architecture.layers
        ]

    @property
    def _relaxations(self) -> list[dict[str, Any]]:
        """The relaxed stages: `certain_group` holds whatever the weights become."""
        return [
            {
                "stage": number,
                "relaxation": stage.annotation,
                "certain_group": str(stage.certain_group),
                "decided_by": relaxation.decided_by(stage.group),
                "start_distance": relaxation.start_distance(stage.group),
            }
            for number, stage in enumerate(self.architecture.stages, start=1)
            if (relaxation := stage.relaxation) is not None
        ]

    @property
    def _breaks(self) -> list[dict[str, Any]]:
        return [
            {
                "element": str(element),
                "reason": b.reason,
                "stage": b.stage,
                "layer": b.layer,
                "axis": b.axis,
                "remainder": b.remainder,
            }
            for element, breaks in self.verdict.losses
            for b in breaks
        ]

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict with its drawing, and what repairs the
        architecture.
        """
        repairs = [html("<li><code>{}</code></li>", repair) for repair in self.repairs]
        listed = (
            html("{}<ul>{}</ul>", repairs_heading(self.architecture), joined_html(repairs))
            if repairs
            else Html("")
        )
        return joined_html([Html(self.verdict._repr_html_()), listed])

    def text(self, width: int = 88, ascii_only: bool = False) -> str:
        """The answer for people, in lines of at most `width` cells (the architecture and the
        proposals may be longer).
        """
        parts = [self._heading, draw_verdict(self.verdict, width, ascii_only), self._answer]
        if self.repairs:
            parts.append(
                "\n".join([repairs_heading(self.architecture), *(f"  {p}" for p in self.repairs)])
            )
        if self.breaking:
            parts.append(
                "To break it on purpose:\n"
                + "\n".join(f"  {p}  frees {' '.join(_names(p.freed))}" for p in self.breaking)
            )
        return "\n\n".join(parts)

    @property
    def _heading(self) -> str:
        lines = [str(self.architecture)]
        if self.published is not None:
            note = f" ({self.published.note})" if self.published.note else ""
            lines.append(f"{self.preset}: {self.published.source}{note}")
        lines.append(
            f"{self.cost.params:,} parameters ({self.cost.expanded_params:,} folded), "
            f"{self.cost.macs:,} multiply-accumulates "
            f"on {self.channels} x {size_text(self.architecture.size)} px"
        )
        lines += self._savings
        if self.idle:
            lines.append(f"Without effect: {', '.join(self.idle)}.")
        if any(stage.dropout for stage in self.architecture.stages):
            lines.append("Dropout acts in training alone; what follows holds in evaluation.")
        return "\n".join(lines)

    @cached_property
    def _answer(self) -> str:
        ruling, group = self.verdict, self.verdict.group
        if group == TRIVIAL:
            return self._plain_answer
        if self.architecture.orbit != TRIVIAL:
            lost = [f"  {_several(_names(e))}: {reason}" for reason, e in self._losses.items()]
            lines = [averaged_line(ruling), *lost]
        elif ruling.exact:
            lines = [f"Exact under {group}: moving the image moves the features."]
        else:
            names, count = " ".join(_names(ruling.surviving)), len(ruling.surviving)
            lines = [
                f"Not exact under {group}: {count} of {group.order} elements "
                f"survive{'s' * (count == 1)} ({names}): {ruling.surviving_group}"
                + (
                    ", for certain, whatever training makes of it."
                    if relaxed_away(self.architecture)
                    else "."
                )
            ]
            lines += [
                f"  {_several(_names(lost))}: {reason}" for reason, lost in self._losses.items()
            ]
            if len(ruling.streams) == 1 and not group <= self.architecture.stages[0].group:
                lines.append(
                    f"Built in is {self.architecture.stages[0].group}; @{group} in the first "
                    f"stage would build in all of {group}."
                )
        lines += near_lines(ruling) + invariant_lines(ruling)
        lines += streams_lines(self.architecture) + pooled_lines(self.architecture)
        lines += sizes_lines(self.architecture, self.unshifted_sizes)
        return "\n".join(lines)

    @property
    def _losses(self) -> dict[str, tuple[Element, ...]]:
        """Where elements are lost, in words, with those that are lost alike."""
        elements_by_reason: dict[str, list[Element]] = {}
        for element, breaks in self.verdict.losses:
            if not breaks:
                continue
            where = places(breaks)
            text = "; ".join(where[:MOST_PLACES]) + (
                f"; and {len(where) - MOST_PLACES} more" if len(where) > MOST_PLACES else ""
            )
            if breaks[0].reason == "grid":
                text = "off the pixel grid: never exact, measure them"
            elif breaks[0].reason == "group":
                text = (
                    f"not built in from stage {breaks[0].stage} on: never guaranteed, at any size "
                    "or layout; measure them"
                )
            elif breaks[0].reason == "coordinates":
                text = (
                    f"the {breaks[0].layer} coordinates stay where they are: never guaranteed; "
                    "measure them, or take coordinates=radius, which keeps all"
                )
            elements_by_reason.setdefault(text, []).append(element)
        return {text: tuple(elements) for text, elements in elements_by_reason.items()}

    @property
    def _plain_answer(self) -> str:
        """What a plain network's layout would keep if its filters were steerable: the part that a
        search can use.
        """
        from dataclasses import replace

        d4 = Group(4, True)
        steerable = replace(
            self.architecture,
            filters="free",
            head="group_max",
            stages=tuple(replace(s, group=d4) for s in self.architecture.stages),
        )
        ruling = verdict(steerable)
        names = " ".join(_names(ruling.surviving))
        layout = (
            f"would keep all of {d4}"
            if ruling.exact
            else f"would keep {ruling.surviving_group} ({names}) of {d4}"
        )
        sizes = (
            f"; all of it at {', '.join(size_text(s) for s in exact_sizes(steerable))} px"
            if not ruling.exact
            else ""
        )
        return (
            "No symmetry is built in: the network is plain. With steerable filters its layout "
            f"{layout}{sizes}."
        )


def named_candidate(text: str) -> Candidate:
    """The candidate that `text` describes, or the published network of that name. Raises
    ValueError that lists the names.
    """
    name = text.strip().lower()
    if name in PUBLISHED:
        return Candidate(PUBLISHED[name].architecture)
    if ":" not in text:
        raise ValueError(
            f"'{text}' is neither an architecture, such as '28px: 10k3@C4, 10k3 max2/2', "
            f"nor a published network; those are {', '.join(PUBLISHED)}"
        )
    return Candidate.parse(text)


def check(
    architecture: Architecture | str,
    group: Group | str | None = None,
    channels: int | None = None,
    classes: int | None = None,
    size: int | None = None,
) -> Checked:
    """The answer on `architecture`: a value, its text form, or the name of a published network.

    `group` is the deployment group asked about; None: the one it is built with. `size` replaces the
    input size (pixels). `channels` and `classes` are the published network's where one is named,
    else 1 and 10. Raises ValueError for a text that is neither an architecture nor a name, and
    lists the names.
    """
    published, preset, recipe, text = None, None, Recipe(), ""
    if isinstance(architecture, str):
        preset, text = architecture.strip().lower(), architecture
        published = PUBLISHED.get(preset)
        candidate = named_candidate(architecture)
        architecture, recipe = candidate.architecture, candidate.recipe
        for loss in recipe.losses:
            if loss.group is not None:  # else what is declared decides
                loss.check_elements(TRIVIAL)
    if size is not None:
        architecture = architecture.with_size(size)
    declared = Group.parse(group) if isinstance(group, str) else group
    images = {
        "channels": channels or (published.channels if published else 1),
        "classes": classes or (published.classes if published else 10),
    }
    ruling = verdict(architecture, declared)
    repairs: dict[Architecture, Proposal] = {}
    for proposal in repair_sizes(architecture, declared, **images) + repair_layouts(
        architecture, declared, **images
    ):
        repairs.setdefault(proposal.architecture, proposal)
    return Checked(
        architecture,
        ruling,
        cost(architecture, **images),
        **images,
        unshifted_sizes=exact_sizes(architecture) if architecture.group != TRIVIAL else (),
        repairs=tuple(repairs.values()),
        breaking=breakings(architecture, declared, **images) if ruling.unshifted else (),
        published=published,
        preset=preset if published else None,
        recipe=recipe,
        idle=idle_parts(text, architecture) if text and not published else (),
    )


def _proposal(proposal: Proposal) -> dict[str, Any]:
    return {
        "kind": proposal.kind,
        "architecture": str(proposal.architecture),
        "changes": list(proposal.changes),
        "surviving": proposal.surviving_group,
        "surviving_elements": _names(proposal.surviving),
        "near_elements": _names(proposal.near),
        "gained": _names(proposal.gained),
        "freed": _names(proposal.freed),
        "macs": proposal.macs,
        "macs_change": proposal.macs_change,
    }


def _names(elements: tuple[Element, ...]) -> list[str]:
    return [str(element) for element in elements]


def _several(names: list[str]) -> str:
    return (
        ", ".join(names)
        if len(names) <= 8
        else f"{', '.join(names[:4])} and {len(names) - 4} others"
    )


def _plain(pair: tuple[int, int]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)
