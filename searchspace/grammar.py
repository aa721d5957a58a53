"""The text form of an `Architecture` or a `Candidate`: what tables, reports, files and the command
line speak.

architecture :=  size "px" [entry] ":" stream ("&" stream)* option*
stream       :=  stage ("," stage)*                   streams read the same image side by side
candidate    :=  architecture recipe*                 options may come in any order
size         :=  29  |  48x64                         height x width, pixels
entry        :=  resize29 | resize29nearest | resize29bicubic | crop27
stage        :=  conv [subsampling]
conv         :=  FIELDS "k" KERNEL, then in any order
                 sN       stride (1)
                 pN       padding (kernel//2); pN:M before and after; pNreflect, pNcircular,
                          pNreplicate
                 dN       dilation (1)
                 xN       repeats: that many convolutions, or residual blocks (1)
                 r        residual blocks of two convolutions
                 dropR    dropout of single values of the stage's result, in training alone, at
                          rate R (0 <= R < 1); fielddropR of whole fields
                 iS       invariant share: the first S (0 <= S <= 1) of the stage's fields hold
                          the maximum over their group in each channel
                 @GROUP   where the group changes; it stays until the next change (C1).
                          Directly behind it, relaxed weights (`searchspace.weights.relaxation`):
                          @C4+C1 pathway, @D4|C4|C1 mixed, @C4b2 banks, @C4~0.3 softness
subsampling  :=  max2/2 | max3/2p1 | max3/2p0:1 | max2/2ceil | avg3/2p1 | conv3/2p1 | lp3/2
              |  blur/2 | blurmax/2 | adaptive | adaptive/2 | adaptive14 | adaptivemax14
              |  resize29 | crop27
option       :=  head=group_max | group_mean | none | block_max:C4  (the last of plain networks)
              |  filters=free | basis                 (free, where all groups are of quarter turns)
              |  family=plain | steerable             (checked against the groups)
              |  coordinates=none | x | y | xy | radius
              |  orbit=C4                             (C1: logits of the image as it is)
recipe       :=  loss=LOSS ("+" LOSS)* | none
              |  loss_weight=constant | adapted       (constant)
              |  augment=none | group | uniform | normal:30 | normal:45:20 | learned | learned:0.1
                                                      (the study's)
              |  learning_rate=0.01                   (the study's)
LOSS         :=  KIND ":" WEIGHT ["@" GROUP] ["#" STAGE ("," STAGE)*]
                 layerwise:0.1 | latent:1@C4#3 | label:0.5 | 0.1 (layerwise)
                 GROUP is the declared one, or C4, or blocks of a layerwise loss as R8-4-2-1
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from searchspace.architecture import Architecture, Filters
from searchspace.function.coordinates import Coordinates
from searchspace.geometry import pixels_text, size_text
from searchspace.groups import TRIVIAL, Group
from searchspace.layers import Stage
from searchspace.recipe import RECIPE_OPTIONS, Candidate, Recipe
from searchspace.subsampling import Subsampling
from searchspace.training.dropout import NO_DROPOUT, Dropout, DropoutKind
from searchspace.weights.relaxation import PATTERN, Relaxation

_HEADER = re.compile(r"\s*(\d+)(?:x(\d+))?\s*px(?:\s+(\S+))?\s*")
_CONV = re.compile(r"(\d+)k(\d+)(\S*)")
_MODIFIER = re.compile(
    r"p(\d+)(?::(\d+))?(reflect|circular|replicate|zeros)?|([sdx])(\d+)|(r)(?!e)"
    rf"|@([A-Za-z]_?\d+)({PATTERN})?"
    r"|((?:field)?drop|i)(\d+(?:\.\d+)?(?:e-?\d+)?)"
)
_DROPOUTS: dict[str, DropoutKind] = {"drop": "values", "fielddrop": "fields"}
_OPTIONS = ("head", "orbit", "coordinates", *RECIPE_OPTIONS, "filters", "family")


def parse_stage(text: str, before: Stage | None = None) -> Stage:
    """The stage that `text` describes, after stage `before` (None: it is the first). Raises
    ValueError that names the part in error.
    """
    words = text.split()
    match = _CONV.fullmatch(words[0]) if words else None
    if not match:
        raise ValueError(
            f"'{text.strip()}' is not a stage; write one like 16k3, 16k5@D4 max3/2p1 or 32k3s2x3r "
            "(fields, k kernel, s stride, p padding, d dilation, x repeats, r residual, drop or "
            "fielddrop with a rate, @GROUP, then the subsampling)"
        )
    apart = [word for word in words[1:] if _MODIFIER.fullmatch(word)]
    if apart:
        raise ValueError(
            f"'{apart[0]}' stands apart in stage '{text.strip()}'; a modifier follows the kernel "
            f"without a space, such as {words[0]}{apart[0]}"
        )
    if len(words) > 2:
        raise ValueError(
            f"stage '{text.strip()}' has more than one subsampling ({', '.join(words[1:])}); "
            "a stage ends with at most one; separate stages by commas and put options last"
        )
    fields, kernel = int(match[1]), int(match[2])
    values = _modifiers(match[3], text)
    dilation = values.get("d", 1)
    if "padding" not in values:
        values["padding"] = (dilation * (kernel // 2), dilation * (kernel // 2))
    subsampling = Subsampling.parse(words[1]) if len(words) == 2 else None
    inherited = (TRIVIAL, None) if before is None else (before.group, before.relaxation)
    group, relaxation = values.get("group", inherited)
    return Stage(
        fields,
        kernel,
        values.get("s", 1),
        values["padding"],
        group,
        subsampling,
        dilation,
        values.get("mode", "zeros"),
        values.get("x", 1),
        values.get("r", False),
        values.get("dropout", NO_DROPOUT),
        relaxation,
        values.get("invariant", 0.0),
    )


def _modifiers(text: str, stage: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    position = 0
    while position < len(text):
        match = _MODIFIER.match(text, position)
        if not match:
            raise _no_modifier(text[position:], stage.strip(), values)
        before, after, mode, letter, number, residual, group, relaxed, drop, rate = match.groups()
        if before is not None:
            modifier: dict[str, Any] = {
                "padding": (int(before), int(after or before)),
                "mode": mode or "zeros",
            }
        elif letter:
            modifier = {letter: int(number)}
        elif drop == "i":
            modifier = {"invariant": float(rate)}
        elif drop:
            modifier = {"dropout": Dropout(_DROPOUTS[drop], float(rate))}
        else:
            relaxation = Relaxation.parse(relaxed) if relaxed else None
            modifier = {"r": True} if residual else {"group": (Group.parse(group), relaxation)}
        twice = values.keys() & modifier.keys()
        if twice:
            raise ValueError(
                f"stage '{stage.strip()}' says {match[0]!r} after it was already given; say it once"
            )
        values.update(modifier)
        position = match.end()
    return values


def _no_modifier(rest: str, stage: str, values: Mapping[str, Any]) -> ValueError:
    """What is wrong with the `rest` of a stage's text, behind modifiers of these values."""
    if not re.match(r"[+|~]|b-?\d", rest):
        return ValueError(
            f"'{rest}' in stage '{stage}' is not a modifier; after the kernel may follow sN "
            "(stride), pN (padding), dN (dilation), xN (repeats), r (residual), dropR and "
            "fielddropR (dropout at rate R), iS (invariant share S) and @GROUP"
        )
    group, relaxation = values.get("group", (None, None))
    if relaxation is not None:
        return ValueError(
            f"stage '{stage}' is relaxed twice ({relaxation} and {rest}); leave one of them out"
        )
    what = "follows no group" if group is None else "is not a relaxation"
    return ValueError(
        f"'{rest}' in stage '{stage}' {what}; weights are relaxed right behind a group: @C4+C1 (a "
        "pathway), @C4|C1 (a mixed layer), @C4b2 (banks) or @C4~0.3 (softness)"
    )


def format_stage(stage: Stage, before: Stage | None = None) -> str:
    """The text form of `stage` after stage `before`; parses back."""
    annotation = "C1" if before is None else before.annotation
    half = stage.dilation * (stage.kernel // 2)
    default = (half, half)
    mode = stage.padding_mode if stage.padding_mode != "zeros" else ""
    padding = _format_padding(stage.padding, None if mode else default) + mode
    parts = [
        f"{stage.fields}k{stage.kernel}",
        f"s{stage.stride}" if stage.stride != 1 else "",
        padding,
        f"d{stage.dilation}" if stage.dilation != 1 else "",
        f"x{stage.repeats}" if stage.repeats != 1 else "",
        "r" if stage.residual else "",
        str(stage.dropout),
        f"i{stage.invariant!r}".removesuffix(".0") if stage.invariant else "",
        f"@{stage.annotation}" if stage.annotation != annotation else "",
        f" {stage.subsampling}" if stage.subsampling else "",
    ]
    return "".join(parts)


def _format_padding(padding: tuple[int, int], default: tuple[int, int] | None) -> str:
    if padding == default:
        return ""
    return f"p{pixels_text(padding)}"


def _require_ascii(text: str) -> None:
    """Raises ValueError for digits and letters of other scripts, which look like those meant."""
    odd = [character for character in text if not character.isascii()]
    if odd:
        raise ValueError(
            f"the text holds {odd[0]!r}, and an architecture is written in ASCII characters; write "
            "digits as 0 to 9"
        )


def parse_candidate(text: str) -> Candidate:
    """The architecture that `text` describes, with the recipe of its options. Raises ValueError
    that names the part in error.
    """
    _require_ascii(text)
    header, colon, body = text.partition(":")
    match = _HEADER.fullmatch(header)
    if colon and not match and len(words := header.split()) > 2 and _HEADER.fullmatch(words[0]):
        raise ValueError(
            f"the input is changed by {' and '.join(words[1:])}, but one step is all that can "
            "stand before the colon; leave one out, or put a step behind a stage"
        )
    if not colon or not match:
        raise ValueError(
            f"'{text.strip()[:60]}' is not an architecture; write the input size, a colon and the "
            "stages, "
            "such as '28px: 10k3@C4, 10k3 max2/2, 10k4p0 head=group_max'"
        )
    size = (int(match[1]), int(match[2] or match[1]))
    entry = Subsampling.parse(match[3]) if match[3] else None
    stages, options = parse_stages(body)
    unknown = options.keys() - set(_OPTIONS)
    if unknown:
        raise ValueError(
            f"there is no option '{min(unknown)}'; the options are {', '.join(_OPTIONS)}"
        )
    on_grid = all(stage.group.on_grid for stage in stages)
    architecture = Architecture(
        size,
        stages,
        options.get("head", "group_max"),
        cast(Filters, options.get("filters", "free" if on_grid else "basis")),
        entry,
        Group.parse(options.get("orbit", "C1")),
        cast(Coordinates, options.get("coordinates", "none")),  # checked, too
    )
    family = options.get("family", architecture.family)
    if family not in ("plain", "steerable"):
        raise ValueError(f"family is '{family}'; choose plain or steerable")
    if family != architecture.family:
        remedy = (
            f"drop '@{stages[0].group}'"
            if family == "plain"
            else "give the first stage a group, such as @C4"
        )
        raise ValueError(
            f"family is {family}, but the first stage has group {stages[0].group}; {remedy}, or "
            f"say family={architecture.family}"
        )
    return Candidate(architecture, Recipe.parse(options))


def parse_stages(text: str) -> tuple[tuple[Stage, ...], dict[str, str]]:
    """(stages, options) of the part after the colon: `10k3@C4, 10k3 max2/2 head=none`."""
    options: dict[str, str] = {}
    words = text.split()
    while words and "=" in words[-1]:
        name, _, value = words.pop().partition("=")
        if name in options:
            raise ValueError(f"option '{name}' is given twice; say it once")
        options[name] = value
    stages: list[Stage] = []
    streams = " ".join(words).split("&")
    for stream in streams:
        if len(streams) > 1 and not stream.strip():
            raise ValueError(
                "an '&' has no stages on one side, so that it joins nothing; write a stream on "
                "both sides, such as 10k3@C4 & 10k3@D1, or leave it out"
            )
        before = None
        for part in stream.split(","):
            try:
                stage = parse_stage(part, before)
            except ValueError as error:
                raise ValueError(f"stage {len(stages) + 1}: {error}") from None
            stages.append(replace(stage, stream=True) if stages and before is None else stage)
            before = stage
    return tuple(stages), options


def _format_stages(stages: tuple[Stage, ...]) -> str:
    text = format_stage(stages[0])
    for before, stage in pairwise(stages):
        text += f" & {format_stage(stage)}" if stage.stream else f", {format_stage(stage, before)}"
    return text


def format_architecture(architecture: Architecture) -> str:
    """The text form of `architecture`; parses back to an equal value."""
    header = f"{size_text(architecture.size)}px"
    if architecture.entry is not None:
        header += f" {architecture.entry}"
    options = []
    if architecture.head != "group_max":
        options.append(f"head={architecture.head}")
    if architecture.filters != (
        "free" if all(s.group.on_grid for s in architecture.stages) else "basis"
    ):
        options.append(f"filters={architecture.filters}")
    if architecture.coordinates != "none":
        options.append(f"coordinates={architecture.coordinates}")
    if architecture.orbit != TRIVIAL:
        options.append(f"orbit={architecture.orbit}")
    return " ".join([f"{header}: {_format_stages(architecture.stages)}", *options])
