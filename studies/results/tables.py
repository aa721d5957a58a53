"""What reading commands show of a study: `status`, `trials`, `front`, `show`. Nothing here imports
torch, optuna or ray.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from searchspace.geometry import counted
from studies.config import Study
from studies.errors import StudyError
from studies.evidence.front import best_compromise, front_members, values_of
from studies.evidence.intervals import Evidence, intervals, over_seeds, resolution_text
from studies.evidence.learned import learned_lines
from studies.journal.definition import definition_note
from studies.journal.directory import read_study
from studies.journal.folders import read_folders
from studies.journal.lock import holder
from studies.journal.origin import lost_journal
from studies.journal.reader import JOURNAL, read_trials
from studies.journal.salvage import read_what_is_whole
from studies.journal.stored import read_stored
from studies.journal.trial import MODEL, TrialRecord, state_word
from studies.output import Column, formatted, percent, short
from studies.pareto import SCORE_OF, SHARES, front_volume
from studies.tasks import beside_lines, in_words, score_name, task_score
from trainers.files import as_word

SHOWN_STATES = ("complete", "pruned", "failed", "running", "waiting", "refused", "earlier")
COST_OBJECTIVES = ("params", "macs", "latency")


def open_records(
    directory: Path, *, parameters: bool = False, reading: bool = False
) -> tuple[Study, list[TrialRecord]]:
    """The study in `directory` and its trials. `reading`: values of the study file that this
    version refuses are no error, and lines of the journal that are no records of this version are
    left out with a JournalWarning, since nothing is trained with them.

    Raises StudyError if there is no study, or its journal is damaged.
    """
    study = read_stored(directory) if reading else read_study(directory)
    if not (directory / JOURNAL).is_file():
        raise lost_journal(directory)
    try:
        read = read_what_is_whole if reading else read_trials
        records = read(directory, parameters=parameters)
        if not records and read_folders(directory):
            raise lost_journal(directory)
        return study, records
    except ValueError as error:
        raise StudyError(str(error)) from None


def find_trial(records: Sequence[TrialRecord], number: int, directory: Path) -> TrialRecord:
    """Trial `number`. Raises StudyError that says which there are."""
    if not 0 <= number < len(records):
        there = f"it has trials 0 to {len(records) - 1}" if records else "it has no trials yet"
        raise StudyError(
            f"there is no trial {number} in {directory}; {there} (`equisearch trials "
            f"{as_word(directory)}` lists them)"
        )
    return records[number]


def status(directory: Path) -> dict[str, Any]:
    """How a study stands: trials by state, size and hypervolume of the front, and who drives it."""
    from studies.workers.declaration import read_declaration  # other tables have no use for it

    study, records = open_records(directory, reading=True)
    counts = Counter(record.state for record in records if record.kind == "search")
    beside = Counter(record.kind for record in records if record.kind != "search")
    front = front_members(study, records)
    declaration = read_declaration(directory)
    return {
        "directory": str(directory),
        "trials": {state: counts[state] for state in SHOWN_STATES},
        "asked_for": study.search.trials,
        "front_size": len(front),
        "hypervolume": front_volume(values_of(front), study.objectives),
        "objectives": list(study.objectives),
        "score": task_score(study.data.task),
        "scored": study.symmetry.scored,
        "driver": holder(directory),
        "note": definition_note(study),
        "beside_the_search": dict(beside),
        "resolution": Evidence.of(directory).resolution(front, task_score(study.data.task)),
        "declaration": None if declaration is None else asdict(declaration),
    }


def left_out(records: Sequence[TrialRecord]) -> str:
    """One sentence about trials that a front leaves out because their scores do not compare: those
    of a warm start, or of images that have changed since; empty if there are none.
    """
    count = sum(record.state == "earlier" for record in records)
    return (
        f"{counted(count, 'earlier trial')} (of a warm start, or of images that "
        "have changed since) left out: their scores do not compare"
        if count
        else ""
    )


def status_lines(value: dict[str, Any]) -> list[str]:
    """The status as text."""
    trials = value["trials"]
    done = trials["complete"] + trials["pruned"] + trials["failed"]
    states = ", ".join(
        f"{trials[state]} {state_word(state)}" for state in SHOWN_STATES if trials[state]
    )
    beside = ", ".join(
        f"{counted(count, kind)}" for kind, count in value["beside_the_search"].items()
    )
    driven = f"driven by {value['driver']}" if value["driver"] else "no process drives it"
    return [
        f"{value['directory']}: {done} of {counted(value['asked_for'], 'trial')} done "
        f"({states or 'none yet'}); {driven}",
        f"front: {counted(value['front_size'], 'architecture')}, "
        f"hypervolume {value['hypervolume']:.4f} of "
        f"({in_words(', '.join(value['objectives']), value['score'])})",
        *([f"beside the search: {beside}"] if beside else []),
        *([resolution_text(value["resolution"])] if value["resolution"] else []),
        *([value["note"]] if value["note"] else []),
        *(f"warning: {text}" for text in (value["declaration"] or {}).get("warnings", ())),
    ]


def trial_row(
    study: Study, record: TrialRecord, evidence: Evidence | None = None
) -> dict[str, Any]:
    """One trial as plain values; `intervals` are 95 % intervals over validation images."""
    images = (evidence or Evidence()).count(record)
    facts = record.attributes
    values = dict(zip(study.objectives, record.values)) if record.values else {}
    return {
        "trial": record.number,
        "state": record.state,
        # of a trial that waits, what is to be tried
        "architecture": record.architecture or facts.get("enqueued"),
        "model": facts.get(MODEL),
        "values": values,
        "epoch": (record.scores or {}).get("epoch"),
        "params": facts.get("params"),
        "macs": facts.get("macs"),
        "exact": facts.get("exact"),
        "surviving": facts.get("surviving"),
        "learning_rate": facts.get("learning_rate"),
        "seed": facts.get("seed"),
        "continues": facts.get("continues"),
        "inherited_from": facts.get("inherited_from"),
        "inherited_epoch": facts.get("inherited_epoch"),
        "scores": record.scores,
        "intervals": intervals(record.scores, images),
        "num_images": images,
        "kind": record.kind,
        "of": facts.get("of"),
        "role": facts.get("role"),
        "reason": record.reason,
        "started": record.started,
        "finished": record.finished,
    }


def trial_rows(directory: Path) -> tuple[list[dict[str, Any]], list[Column], list[list[str]]]:
    """Every trial as values, and as the cells of a table."""
    return rows_of(*open_records(directory, parameters=True, reading=True), Evidence.of(directory))


def rows_of(
    study: Study, records: Sequence[TrialRecord], evidence: Evidence
) -> tuple[list[dict[str, Any]], list[Column], list[list[str]]]:
    """Trials as values, and as the cells of a table."""
    rows = [
        {**trial_row(study, record, evidence), "parameters": record.parameters}
        for record in records
    ]
    names = dict.fromkeys(("accuracy", "symmetry_accuracy", *study.objectives))
    scores = [name for name in names if name not in COST_OBJECTIVES]
    columns = [
        Column("trial", True),
        Column("state"),
        Column("epoch", True),
        *(Column(_title(name, study), True) for name in scores),
        Column("params", True),
        Column("MACs", True),
        Column("exact"),
        Column("architecture, or why it failed"),
    ]
    cells = [
        [
            str(row["trial"]),
            state_word(row["state"]),
            str(row["epoch"] or "-"),
            *(_score(row, name) for name in scores),
            short(row["params"]),
            short(row["macs"]),
            _yes(row["exact"]),
            _what(row),
        ]
        for row in rows
    ]
    return rows, columns, cells


def front_rows(
    study: Study, records: Sequence[TrialRecord], evidence: Evidence | None = None
) -> tuple[list[dict[str, Any]], list[Column], list[list[str]]]:
    """The Pareto front as values, and as the cells of a table; the best compromise is marked, and
    each member names those that it cannot be told apart from (`ties`).
    """
    evidence = evidence or Evidence()
    front = front_members(study, records)
    best = best_compromise(study, front)
    ties, seeds = evidence.ties(study, front), over_seeds(records)
    rows = [
        {
            **trial_row(study, record, evidence),
            "knee": record is best,
            "ties": ties[record.number],
            "seeds": seeds.get(record.key or "", {}),
        }
        for record in front
    ]
    names = dict.fromkeys(("accuracy", "symmetry_accuracy", *study.objectives))
    scores = [name for name in names if name not in COST_OBJECTIVES]
    columns = [
        Column("trial", True),
        *(Column(_title(name, study), True) for name in scores),
        Column("params", True),
        Column("MACs", True),
        Column("exact"),
        Column("tied with"),
        Column("architecture"),
    ]
    cells = [
        [
            ("*" if row["knee"] else "") + str(row["trial"]),
            *(_score(row, name) for name in scores),
            short(row["params"]),
            short(row["macs"]),
            _yes(row["exact"]),
            " ".join(map(str, row["ties"])) or "-",
            _what(row),
        ]
        for row in rows
    ]
    return rows, columns, cells


def _title(name: str, study: Study) -> str:
    title = {
        "accuracy": "accuracy %",
        "symmetry_accuracy": "symmetry %",
        "worst_symmetry_accuracy": "worst element %",
        "balanced_accuracy": "balanced %",
        "auroc": "AUROC %",
        "worst_class": "worst class %",
        "symmetry_balanced_accuracy": "symmetry balanced %",
        "symmetry_auroc": "symmetry AUROC %",
        "symmetry_worst_class": "symmetry worst class %",
        "equivariance_error": "equiv. error",
    }.get(name, name)
    return in_words(title, task_score(study.data.task))


def _score(row: dict[str, Any], name: str) -> str:
    score = SCORE_OF.get(name, name)
    value = (row["scores"] or {}).get(score, row["values"].get(name))
    if value is None:
        return "-"
    if name not in SHARES:
        return formatted(value, ".3g")
    return percent(value) + bounds(row["intervals"].get(score))


def bounds(interval: Mapping[str, float] | None) -> str:
    """A 95 % interval of a share as text behind it, in per cent; empty for none."""
    return f" [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]" if interval else ""


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _turns(row: dict[str, Any]) -> list[str]:
    """What a learned augmentation turns images by, where there is one."""
    width = ((row["scores"] or {}).get("learned") or {}).get("width rotation")
    return [] if width is None else [f"learned to turn by ±{math.degrees(width) / 2:.0f} degrees"]


def _what(row: dict[str, Any]) -> str:
    notes = [
        *_kind(row),
        *([f"continues trial {row['continues']}"] if row["continues"] is not None else []),
        *([f"inherits trial {row['inherited_from']}"] if row["inherited_from"] is not None else []),
        *_turns(row),
        *([row["reason"]] if row["reason"] else []),
    ]
    return "  ".join([str(row["architecture"] or row["model"] or ""), *(f"[{n}]" for n in notes)])


def _kind(row: dict[str, Any]) -> list[str]:
    """What a trial is, where the search did not propose it."""
    if row["kind"] == "model":
        return [f"a model from outside, {row['role']}"]
    return [] if row["kind"] == "search" else [f"{row['kind']} of trial {row['of']}: {row['role']}"]


def _beside(row: Mapping[str, Any], rungs: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Lines on what was trained beside the network, and on what its study calls symmetry."""
    learned = (rungs[max(rungs)].get("learned") if rungs else None) or {}
    return [*learned_lines(learned), *([f"  {row['note']}"] if row.get("note") else [])]


def _unseen(scores: Mapping[str, Any]) -> str:
    """The mean over what training has not seen, where the scores tell it."""
    if "unseen_symmetry_accuracy" not in scores:
        return ""
    value = scores["unseen_symmetry_accuracy"]
    return ", training has seen all" if value is None else f", unseen {percent(value)} %"


def _over_seeds(means: dict[str, dict[str, Any]], score: str) -> list[str]:
    return [
        f"  {in_words(name.replace('_', ' '), score)} over {counted(mean['n'], 'seed')}: "
        f"{percent(mean['mean'])} %{bounds(mean)} (95 % over seeds)"
        for name, mean in means.items()
        if name in ("accuracy", "symmetry_accuracy")
    ]


def _trained_how(row: Mapping[str, Any]) -> str:
    if row["kind"] == "model":
        return f"  a model from outside, {row['role']}"
    rate = "that of the study" if row["learning_rate"] is None else row["learning_rate"]
    return f"  learning rate {rate}, seed {row['seed']}"


def _what_is_trained(row: Mapping[str, Any]) -> list[str]:
    name = row["architecture"] or row["model"]
    if not row["params"]:  # nothing is built yet
        return [f"  {name}, not begun" if name else "  ended before an architecture was proposed"]
    return [
        f"  {name}",
        _trained_how(row),
        f"  {formatted(row['params'], ',')} parameters, {formatted(row['macs'], ',')} MACs per "
        "image",
        f"  exact under the declared group: {_yes(row['exact'])}; logits unchanged under "
        f"{' '.join(map(str, row['surviving'] or []))}",
    ]


def show_lines(directory: Path, row: dict[str, Any], rungs: dict[int, dict[str, Any]]) -> list[str]:
    """One trial in full, as text; `row["note"]` is what must be said of its study's scores."""
    lines = [
        f"trial {row['trial']}: {state_word(row['state'])}"
        + (f" ({row['reason']})" if row["reason"] else ""),
        *_what_is_trained(row),
    ]
    if row["continues"] is not None:
        lines.append(
            f"  continues the training of trial {row['continues']}, which was stopped at a rung"
        )
    if row["kind"] == "softened":
        lines.append(f"  made of trial {row['of']} without training: {row['role']}")
    if row["inherited_from"] is not None:
        lines.append(
            f"  began with the weights of trial {row['inherited_from']}, relaxed, after epoch "
            f"{row['inherited_epoch']} of the schedule"
        )

    def share(name: str, scores: dict[str, Any]) -> str:
        interval = intervals(scores, row["num_images"]).get(name)
        return percent(scores.get(name)) + bounds(interval)

    name = score_name(row["scores"])
    for epoch, scores in rungs.items():
        lines.append(
            f"  epoch {epoch}: {name} {share('accuracy', scores)} %, symmetry {name} "
            f"{share('symmetry_accuracy', scores)} % "
            f"(worst {share('symmetry_accuracy_worst', scores)} %{_unseen(scores)}), "
            "equivariance error "
            f"{formatted(scores.get('equivariance_error', float('nan')), '.3g')}, "
            f"{formatted(scores.get('seconds', 0), '.1f')} s"
        )
    lines += [*beside_lines(row["scores"] or {}), *_beside(row, rungs)]
    if row["intervals"]:
        images = f"{row['num_images']:,} " if row["num_images"] else ""
        lines.append(f"  in brackets: 95 % intervals over {images}validation images")
    lines += _over_seeds(row.get("seeds", {}), score_name(row["scores"]))
    folder = directory / "trials" / f"{row['trial']:05d}"
    if folder.is_dir():
        lines.append(f"  files in {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    return lines
