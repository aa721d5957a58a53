"""The answer of a study in sentences: which constraint to use, what it costs, and how sure that is.
Every sentence is computed from what the study holds, with its n; what is not known is not said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from searchspace.architecture import Architecture
from searchspace.geometry import counted
from searchspace.groups import TRIVIAL, Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.evidence.controls import comparison, outcome
from studies.evidence.front import best_compromise, front_members, scored
from studies.evidence.intervals import Evidence, interval, over_seeds, resolution_text
from studies.journal.definition import corners_note
from studies.journal.trial import TrialRecord
from studies.output import is_number
from studies.results.selection import mean_over_seeds as tested_over_seeds
from studies.tasks import beside_text, in_words, task_score

MOST_TIES = 6  # trials named in a sentence


@dataclass(frozen=True)
class Answer:
    """What a study says: `recommended` is a trial's number, None while no trial is complete."""

    recommended: int | None
    headline: str
    cost: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


def answer(
    study: Study,
    records: Sequence[TrialRecord],
    evidence: Evidence,
    tested: Mapping[int, Mapping[str, Any]],
    warnings: Sequence[str] = (),
) -> Answer:
    """The answer of a study; `tested` holds a summary of `retrain` for each trial it has tested
    (accuracy and symmetry_accuracy with mean and std, n, num_test), `warnings` what the check of
    the declaration said.
    """
    front = front_members(study, records)
    chosen = best_compromise(study, front)
    if chosen is None:
        return Answer(None, "No trial is complete yet.", cautions=tuple(warnings))
    complete = scored(records)
    settled, against = _standing(study, chosen, records, evidence)
    headline = (
        f"{'Use' if settled else 'Not settled; the best guess is'} "
        f"{_subject(chosen, study)}: trial {chosen.number} is the best "
        f"compromise between {_several([n.replace('_', ' ') for n in study.objectives])} among "
        f"{counted(len(complete), 'complete trial')}{against}."
    )
    name = task_score(study.data.task)

    def worded(sentences: Iterator[str]) -> tuple[str, ...]:
        return tuple(in_words(sentence, name) for sentence in sentences)

    return Answer(
        chosen.number,
        in_words(headline, name),
        worded(_cost(study, chosen, complete, evidence)),
        worded(_evidence(study, chosen, front, records, evidence, tested)),
        (*warnings, *worded(_cautions(study, records, complete, evidence, front))),
    )


def _standing(
    study: Study, chosen: TrialRecord, records: Sequence[TrialRecord], evidence: Evidence
) -> tuple[bool, str]:
    """Whether the study shows that the chosen trial is worth its constraint, and what speaks
    against it: rivals (its controls, and the most accurate plain trial) that are better, or that
    its images cannot tell from it (95 %).
    """
    rivals = _rivals(study, chosen, records, evidence)
    of = {
        kind: [rival.words for rival in rivals if rival.what == kind]
        for kind in ("better", "tied", "beaten")
    }
    # while one without any symmetry is level with it, nothing shows that its constraint is needed
    needed = not any(rival.what == "tied" and rival.free for rival in rivals)
    images = evidence.count(chosen)
    on = f" on {counted(images, 'image')}" if images else ""
    if of["better"]:
        be = "are" if len(of["better"]) > 1 else "is"
        return False, f", but {_several(of['better'][:MOST_TIES])} {be} better (95 %{on})"
    said = (
        f"cannot be told from those of {_named(of['tied'], len(rivals), free=not needed)} "
        f"(95 %{on})"
        if of["tied"]
        else ""
    )
    if said and not (of["beaten"] and needed):
        return False, f", but its scores {said}"
    known = [(r.words, r.gap) for r in rivals if r.gap and is_number(r.gap["high"])]
    worse = [(-gap["high"], words, gap) for words, gap in known if gap["high"] < 0]
    price = ""
    if worse:
        _, words, gap = max(worse, key=lambda entry: entry[0])
        low, value, high = (-100 * gap[name] for name in ("high", "value", "low"))
        gap_text = f"{value:.1f} points [{low:.1f}, {high:.1f}]"
        price = (
            f"; images as they are it classifies {gap_text} worse than {words}"
            if study.data.task == "classification"
            else f"; on images as they are its accuracy is {gap_text} below that of {words}"
        )
    return True, price + (f"; its scores {said}" if said else "")


@dataclass(frozen=True)
class _Rival:
    words: str  # what it is called
    what: str  # what it is by its intervals: see `outcome`
    gap: Mapping[str, Any] | None  # the difference of accuracy
    free: bool  # neither built nor trained for any symmetry


def _rivals(
    study: Study, chosen: TrialRecord, records: Sequence[TrialRecord], evidence: Evidence
) -> list[_Rival]:
    found = {
        row["trial"]: _Rival(
            f"{row['control']} (trial {row['trial']})",
            row["outcome"],
            row["differences"].get("accuracy"),
            _is_free(row.get("architecture")),
        )
        for row in comparison(study, records, evidence)["controls"]
        if row["outcome"] != "unknown"
    }
    plain = [r for r in scored(records) if _is_plain(r) and r is not chosen]
    if plain and not _is_plain(chosen):
        rival = max(plain, key=lambda r: (r.scores or {}).get("accuracy") or 0.0)
        gaps = {
            name: gap
            for name in ("accuracy", "symmetry_accuracy")
            if (gap := evidence.difference(chosen, rival, name)) is not None
        }
        found[rival.number] = _Rival(
            f"the {_best(study)} plain network (trial {rival.number})",
            outcome([(gap.low, gap.high) for gap in gaps.values()]),
            gaps["accuracy"].as_dict() if "accuracy" in gaps else None,
            _is_free(rival.architecture),
        )
    return list(found.values())


def _is_free(text: str | None) -> bool:
    """Whether a candidate is plain, with no equivariance loss, augmentation or orbit average."""
    candidate = Candidate.parse(text) if text else None
    return (
        candidate is not None
        and candidate.architecture.family == "plain"
        and candidate.architecture.orbit == TRIVIAL
        and not candidate.recipe.losses
        and str(candidate.recipe.augment or "none") == "none"
    )


def _named(rivals: Sequence[str], among: int, *, free: bool = False) -> str:
    """The rivals, or how many they are where their names would fill a paragraph; `free`: some have
    no symmetry at all.
    """
    if len(rivals) <= 2:
        return " and ".join(rivals)
    share = f"any of its {among}" if len(rivals) == among else f"{len(rivals)} of its {among}"
    if free:
        return f"{share} rivals, among them plain networks without any symmetry"
    return f"{share} rivals, plain networks and controls"


def _is_plain(record: TrialRecord) -> bool:
    text = record.architecture
    return bool(text) and Candidate.parse(str(text)).architecture.family == "plain"


def _subject(chosen: TrialRecord, study: Study) -> str:
    """What is answered: a constraint, or a model from outside."""
    if chosen.architecture is None:
        return f"the model {chosen.name}"
    return constraint_text(Candidate.parse(chosen.architecture), chosen, study)


def constraint_text(candidate: Candidate, record: TrialRecord, study: Study) -> str:
    """How much symmetry a trial builds in, or is trained for, such as "exact equivariance under
    D4".
    """
    declared = Group.parse(study.symmetry.group)
    surviving = record.attributes.get("surviving") or []
    built = _built(candidate.architecture, declared, len(surviving), record)
    architecture, recipe = candidate.architecture, candidate.recipe
    ways = [f"the equivariance loss {loss}" for loss in recipe.losses]
    if recipe.augment is not None and str(recipe.augment) != "none":
        ways.append(f"augmentation ({recipe.augment})")
    if architecture.orbit != TRIVIAL:
        ways.append(f"logits averaged over {architecture.orbit}")
    return built + (f" with {_several(ways)}" if ways else "")


def _built(architecture: Architecture, declared: Group, survivors: int, record: TrialRecord) -> str:
    groups = dict.fromkeys(stage.annotation for stage in architecture.stages)
    if record.attributes.get("exact") and declared != TRIVIAL:
        return f"exact equivariance under {declared}"
    if architecture.family == "plain" and survivors <= 1:
        return "no built-in equivariance (a plain network)"
    kept = (
        f"{survivors} of the {declared.order} elements of {declared} kept exactly"
        if survivors > 1
        else f"no element of {declared} but the identity kept exactly"
    )
    return f"partial equivariance ({' to '.join(groups)} by stages, {kept})"


def _cost(
    study: Study, chosen: TrialRecord, complete: Sequence[TrialRecord], evidence: Evidence
) -> Iterator[str]:
    scores, images = chosen.scores or {}, evidence.count(chosen)
    upright = _share(scores, "accuracy", images)
    if upright:
        moved = _share(scores, "symmetry_accuracy", images)
        over = f"On {images:,} validation images" if images else "On validation images"
        under = f", and {moved} under the other elements of {study.symmetry.group}" if moved else ""
        if study.data.task == "classification":
            yield f"{over} it classifies {upright} correctly as they are{under}."
        else:
            others = f"; beside it {beside_text(scores)}" if scores.get("beside") else ""
            yield f"{over} its accuracy is {upright} as they are{under}{others}."
        if moved and (filled := corners_note(study)):
            yield f"{filled}."
    rivals = [r for r in complete if is_number((r.scores or {}).get("accuracy"))]
    best = max(rivals, key=lambda r: (r.scores or {})["accuracy"], default=None)
    if best is None or best is chosen or not upright:
        if upright:
            yield f"No other trial of the search {_better(study)} on images as they are."
    else:
        yield _against(study, chosen, best, f"the {_best(study)} trial", evidence)
    plain = [r for r in rivals if _is_plain(r)]
    if upright and plain and chosen not in plain:
        rival = max(plain, key=lambda r: (r.scores or {})["accuracy"])
        if rival is not best:
            yield _against(study, chosen, rival, f"the {_best(study)} plain network", evidence)
    yield _size(chosen, best)


def _best(study: Study) -> str:
    return "most accurate" if study.data.task == "classification" else "best"


def _better(study: Study) -> str:
    return "is more accurate" if study.data.task == "classification" else "has a higher accuracy"


def _against(
    study: Study, chosen: TrialRecord, rival: TrialRecord, who: str, evidence: Evidence
) -> str:
    parts, over = [], ""
    for score, words in (
        ("accuracy", "on images as they are"),
        ("symmetry_accuracy", f"under {study.symmetry.group}"),
    ):
        difference = evidence.difference(chosen, rival, score)
        if difference is not None:
            verdict = "" if difference.distinct else " (zero is possible)"
            parts.append(f"{difference.points()} points {words}{verdict}")
            paired = difference.over == "images"
            over = f", {'paired ' if paired else ''}over {counted(difference.count, 'image')}"
    if not parts:
        return f"How it differs from {who} (trial {rival.number}) is not recorded."
    return f"Against {who} (trial {rival.number}): {' and '.join(parts)}{over}."


def _size(chosen: TrialRecord, best: TrialRecord | None) -> str:
    params, macs = (chosen.attributes.get(name) for name in ("params", "macs"))
    counted = is_number(params)
    text = f"It has {params:,} parameters" if counted else "Its parameters are not recorded"
    if is_number(macs):
        text += f" and takes {macs:,} multiply-accumulates per image"
    theirs = None if best is None or best is chosen else best.attributes.get("macs")
    if best is not None and is_number(macs) and is_number(theirs) and theirs:
        text += f", {macs / theirs:.2g} times those of trial {best.number}"
    return f"{text}."


def _evidence(
    study: Study,
    chosen: TrialRecord,
    front: Sequence[TrialRecord],
    records: Sequence[TrialRecord],
    evidence: Evidence,
    tested: Mapping[int, Mapping[str, Any]],
) -> Iterator[str]:
    ties = [
        r.number for r in front if r is not chosen and evidence.tied(study.objectives, chosen, r)
    ]
    if ties:
        named = _several([str(n) for n in ties[:MOST_TIES]])
        more = f" and {len(ties) - MOST_TIES} more" if len(ties) > MOST_TIES else ""
        yield (
            f"{'Trial' if len(ties) == 1 else 'Trials'} {named}{more} of the front cannot be told "
            "from it on these images (95 %)."
        )
    elif len(front) > 1:
        others = len(front) - 1
        yield (
            f"The other {others} members of the front differ from it in at least one objective "
            "(95 %)."
            if others > 1
            else "The other member of the front differs from it in an objective (95 %)."
        )
    seeds = over_seeds(records).get(chosen.key or "", {}).get("symmetry_accuracy")
    if seeds:
        yield (
            f"Over {counted(seeds['n'], 'seed')} its symmetry accuracy is "
            f"{100 * seeds['mean']:.1f} % "
            f"[{100 * seeds['low']:.1f}, {100 * seeds['high']:.1f}]."
        )
    result = tested.get(chosen.number)
    if result is None:
        yield (
            "It was chosen for its validation scores, which flatter the chosen; its test score is "
            "not known until `equisearch retrain`."
        )
    else:
        yield (
            f"Trained again with {counted(int(result['n']), 'seed')}, it reaches "
            f"{_tested(result, 'accuracy')} as they are and "
            f"{_tested(result, 'symmetry_accuracy')} under {study.symmetry.group} on "
            f"{result['num_test']:,} test images (95 % intervals over images"
            f"{' and seeds' if result['n'] > 1 else ''})."
        )


def _tested(result: Mapping[str, Any], name: str) -> str:
    """The mean over seeds of a test score, its standard deviation, and its interval."""
    error = (result.get("errors") or {}).get(name)
    found = tested_over_seeds(result[name], result["num_test"], error)
    ends = f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"{result[name].percent()} % {ends}"


def _cautions(
    study: Study,
    records: Sequence[TrialRecord],
    complete: Sequence[TrialRecord],
    evidence: Evidence,
    front: Sequence[TrialRecord],
) -> Iterator[str]:
    resolution = evidence.resolution(front, task_score(study.data.task))
    if resolution:
        text = resolution_text(resolution)
        yield f"{text[0].upper()}{text[1:]}."
    stopped = sum(r.state == "pruned" and r.kind == "search" for r in records)
    if stopped:
        yield (
            f"{counted(stopped, 'trial')} of {stopped + len(complete)} stopped early, at a rung: "
            "what they would have reached is not known."
        )
    failed = sum(r.state == "failed" for r in records)
    if failed:
        yield f"{counted(failed, 'trial')} failed; the reasons are below."
    ended = sum(r.state in ("complete", "pruned", "failed") for r in records if r.kind == "search")
    if ended < study.search.trials:
        yield f"{ended} of {study.search.trials} trials have ended; the answer may change."


def _share(scores: Mapping[str, Any], name: str, images: int | None) -> str:
    """A share of images in percent with its 95 % interval; empty where it is not there."""
    value = scores.get(name)
    if not is_number(value):
        return ""
    ranged = interval(scores, name, images)
    around = f" [{100 * ranged[0]:.1f}, {100 * ranged[1]:.1f}]" if ranged else ""
    return f"{100 * value:.1f} %{around}"


def _several(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
