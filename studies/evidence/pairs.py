"""Pairs of trials that differ in one thing: what the study's own trials say about a group, the
exactness of a layout, a size, a loss or an augmentation, and which partners are missing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

from searchspace.choices import Interval
from searchspace.exactness import verdict
from searchspace.groups import TRIVIAL, Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.evidence import variants
from studies.evidence.front import best_compromise, front_members
from studies.evidence.intervals import Evidence
from studies.evidence.paired import Difference, over_values
from studies.journal.trial import NOT_TRAINED, TrialRecord
from studies.output import is_number

SCORES = ("accuracy", "symmetry_accuracy")
EXACTNESS = "exactness"  # a layout or a size that keeps other elements exact
THIN = 3  # pairs below which a mean says little
MOST_BASES = 8  # trials that partners are looked for, unless more partners are wanted


@dataclass(frozen=True)
class Pair:
    """Two trials of candidates that differ in one factor."""

    factor: str
    first: str  # the factor's value of trial `a`
    second: str
    a: TrialRecord
    b: TrialRecord


def candidate_of(record: TrialRecord) -> Candidate:
    """The candidate of a trial. Raises ValueError for an architecture of a newer version."""
    return _parsed(str(record.architecture)).with_learning_rate(record.learning_rate)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Candidate:
    return Candidate.parse(text)


def _readable(record: TrialRecord) -> bool:
    try:
        candidate_of(record)
    except (ValueError, TypeError):
        return False
    return True


def compared_trials(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Complete trials, the first training of each candidate, those beside the search included.

    Left out are trials that began with another's weights or were made of them, and what a journal
    that was edited by hand, or a newer version, says of a candidate that cannot be read.
    """
    first: dict[str, TrialRecord] = {}
    for record in records:
        made = record.inherited_from is not None or record.kind in NOT_TRAINED
        if record.state != "complete" or made:
            continue
        scores = record.scores or {}
        if all(is_number(scores.get(name)) for name in SCORES) and _readable(record):
            first.setdefault(str(record.key or record.architecture), record)
    return list(first.values())


_Known = tuple[TrialRecord, Mapping[str, str]]  # a trial and its factors


def find_pairs(study: Study, records: Iterable[TrialRecord]) -> list[Pair]:
    """The pairs among a study's complete trials, which are looked up by what they have in common:
    thousands of trials take seconds.
    """
    trained = [
        (record, variants.factors(candidate_of(record), widths=study.space.width is None))
        for record in compared_trials(records)
    ]
    names = sorted({name for _, factors in trained for name in factors})
    alike: dict[tuple[str, frozenset[tuple[str, str]]], list[_Known]] = {}
    for entry in trained:
        for name in names:
            left_out = (name, *(variants.OF_GROUPS if name == "group" else ()))
            rest = frozenset(item for item in entry[1].items() if item[0] not in left_out)
            alike.setdefault((name, rest), []).append(entry)
    return [
        _pair(name, one, two)
        for (name, _), entries in alike.items()
        for one, two in combinations(entries, 2)
        if variants.differing(one[1], two[1]) == [name]
    ]


def _pair(name: str, one: _Known, two: _Known) -> Pair:
    """The pair with the larger group, the more exact layout, or what is there at all first."""
    values = {record.number: factors.get(name, "none") for record, factors in (one, two)}
    exact = {
        record.number: len(record.attributes.get("surviving") or ()) for record, _ in (one, two)
    }

    def place(record: TrialRecord) -> Any:
        value = values[record.number]
        if name == EXACTNESS:
            return -exact[record.number]
        return (-_order(value), value) if name == "group" else (value == "none", value)

    if name in ("layout", "input size") and len(set(exact.values())) == 2:
        name = EXACTNESS
        values = {number: f"{count} elements exact" for number, count in exact.items()}
    a, b = sorted((one[0], two[0]), key=place)
    return Pair(name, values[a.number], values[b.number], a, b)


def _order(groups: str) -> int:
    """The order of the first group in a text such as `D4, C1 from stage 4` or `C4+C1`."""
    named = re.match(r"[CD]\d+", groups)
    return Group.parse(named[0]).order if named else 0


def summarise_pairs(pairs: Sequence[Pair], evidence: Evidence) -> list[dict[str, Any]]:
    """One row per factor and two of its values: the mean difference of both scores with its 95 %
    interval, over pairs (Student's) and their images, or over images where there is one pair.
    """
    groups: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.factor, pair.first, pair.second), []).append(pair)
    rows = []
    for (factor, first, second), alike in sorted(groups.items()):
        differences = {score: _mean(alike, evidence, score) for score in SCORES}
        rows.append(
            {
                "factor": factor,
                "first": first,
                "second": second,
                "n": len(alike),
                "thin": len(alike) < THIN,
                "trials": [[pair.a.number, pair.b.number] for pair in alike],
                "differences": {k: d.as_dict() for k, d in differences.items() if d is not None},
                "texts": {k: d.points() for k, d in differences.items() if d is not None},
            }
        )
    return rows


def _mean(pairs: Sequence[Pair], evidence: Evidence, score: str) -> Difference | None:
    each = [evidence.difference(pair.a, pair.b, score) for pair in pairs]
    differences = [difference for difference in each if difference is not None]
    if len(differences) != len(pairs):
        values = [
            (pair.a.scores or {}).get(score, 0.0) - (pair.b.scores or {}).get(score, 0.0)
            for pair in pairs
        ]
        return over_values(values, "pairs")
    return differences[0] if len(differences) == 1 else _over_pairs(differences)


def _over_pairs(differences: Sequence[Difference]) -> Difference:
    """The mean of differences on the same images. Pairs share these, so what the choice of images
    adds does not shrink with more pairs: it is added in squares to what pairs differ by.
    """
    pairs = over_values([d.value for d in differences], "pairs")
    images = sum(d.half for d in differences if d.over.startswith("images")) / len(differences)
    half = math.hypot(pairs.half, images)
    return replace(pairs, low=pairs.value - half, high=pairs.value + half)


@dataclass(frozen=True)
class Partner:
    """A candidate that would complete a pair with a trial."""

    candidate: Candidate
    of: int  # the trial
    factor: str


def missing_partners(
    study: Study, records: Sequence[TrialRecord], channels: int, classes: int, count: int
) -> list[Partner]:
    """Up to `count` partners that no trial of the study has trained, most informative first.

    The factor with the fewest pairs so far comes first, then the trial that is better: the best
    compromise, the rest of the front, other complete trials.
    """
    widths = study.space.width is None
    declared = Group.parse(study.symmetry.group)
    front = front_members(study, records)
    best = best_compromise(study, front)
    front_numbers = {record.number for record in front}
    bases = sorted(
        (record for record in compared_trials(records) if record.feasible),
        key=lambda r: (r is not best, r.number not in front_numbers, r.number),
    )
    there = [
        variants.factors(candidate_of(record), widths=widths)
        for record in records
        if record.state in ("complete", "running", "waiting")
        and record.kind not in NOT_TRAINED
        and _readable(record)
    ]
    pairs = Counter(pair.factor for pair in find_pairs(study, records))
    open_ones = []
    for rank, record in enumerate(bases[: max(MOST_BASES, count)]):
        base = candidate_of(record)
        mine = variants.factors(base, widths=widths)
        for candidate in _variants(study, base, channels, classes):
            theirs = variants.factors(candidate, widths=widths)
            names = variants.differing(mine, theirs)
            if len(names) == 1:
                factor = _factor(names[0], base, candidate, declared)
                open_ones.append((rank, Partner(candidate, record.number, factor), theirs))
    chosen: list[Partner] = []
    while open_ones and len(chosen) < count:
        open_ones.sort(key=lambda entry: (pairs[entry[1].factor], entry[0]))
        _, partner, factors = open_ones.pop(0)
        if factors not in there:
            there.append(factors)
            pairs[partner.factor] += 1
            chosen.append(partner)
    return chosen


def _factor(name: str, a: Candidate, b: Candidate, declared: Group) -> str:
    """The factor of a pair before it is trained, by the name that `find_pairs` gives it."""
    exact = [len(verdict(c.architecture, declared).invariant) for c in (a, b)]
    return EXACTNESS if name in ("layout", "input size") and exact[0] != exact[1] else name


Make = Callable[[], Candidate]


def _variants(study: Study, base: Candidate, channels: int, classes: int) -> Iterator[Candidate]:
    """Candidates of the study's space that differ from `base` in one factor; those that cannot be
    built, or whose width cannot be matched, are left out.
    """
    width = study.space.width
    exact = verdict(base.architecture, Group.parse(study.symmetry.group)).exact
    for make in (
        *_groups(study, base),
        *_sizes_and_layouts(study, base),
        # to an exact network, equivariance losses and moved images are nothing new
        *(() if exact else (*_losses(study, base), *_augmentations(base))),
    ):
        try:
            candidate = make()
            if width is not None and candidate.architecture != base.architecture:
                wide = variants.matched(
                    candidate.architecture, width.match, width.to, channels, classes
                )
                candidate = variants.with_architecture(candidate, wide)
        except ValueError:
            continue
        yield candidate


def _groups(study: Study, base: Candidate) -> Iterator[Make]:
    """Other groups of the space for all stages; without a restriction where the trial has one."""
    names = list(study.space.groups if "steerable" in study.space.family else ())
    names += [TRIVIAL] if "plain" in study.space.family else []
    architecture = base.architecture
    uniform = len({stage.group for stage in architecture.stages}) == 1
    for group in names if uniform else [architecture.stages[0].group]:
        if not uniform or group != architecture.group:
            yield lambda group=group: variants.with_architecture(
                base, variants.with_group(architecture, group)
            )


def _sizes_and_layouts(study: Study, base: Candidate) -> Iterator[Make]:
    """Other sizes, the nearest first, and other layouts of the space."""
    architecture = base.architecture
    mine = architecture.size[0]
    for size in sorted(study.space.pixels, key=lambda n: (abs(n - mine), n)):
        if size != mine:
            yield lambda size=size: variants.with_architecture(base, architecture.with_size(size))
    for layout in study.space.layout:
        yield lambda layout=layout: variants.with_architecture(
            base, variants.with_layout(architecture, layout)
        )


def _losses(study: Study, base: Candidate) -> Iterator[Make]:
    """No equivariance loss where the trial has one, else one of each kind at the middle weight."""
    if "loss" in variants.options_of(base):
        yield lambda: variants.with_options(base, loss=None, loss_weight=None)
        return
    weight = study.space.equivariance_loss.weight
    if isinstance(weight, Interval):
        weight = float(f"{(weight.low * weight.high) ** 0.5:.3g}")
    for kind in study.space.equivariance_loss.kind:
        if kind != "none":
            terms = [t if ":" in t else f"{t}:{weight}" for t in kind.split("+")]
            yield lambda terms=terms: variants.with_options(base, loss="+".join(terms))


def _augmentations(base: Candidate) -> Iterator[Make]:
    """With augmentation over the declared group, or as the study's training where it has one."""
    there = variants.options_of(base).get("augment")
    yield lambda: variants.with_options(base, augment=None if there else "group")
