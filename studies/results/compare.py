"""`equisearch compare`: two trials side by side, the pairs of a study, and its controls. Nothing
here imports torch, optuna or ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from searchspace.geometry import counted
from studies.config import Study
from studies.errors import StudyError
from studies.evidence import controls, pairs, variants
from studies.evidence.intervals import ERRORS, INTERVAL_SCORES, Evidence
from studies.evidence.pairs import candidate_of
from studies.journal.trial import TrialRecord, state_word
from studies.output import Column, formatted, is_number, percent, short
from studies.results import tables
from studies.tasks import in_words, task_score

COSTS = ("params", "macs", "latency", "seconds")
OTHER_SCORES = ("equivariance_error", "equivariance_error_features", "loss")


def compare(directory: Path, first: int, second: int) -> dict[str, Any]:
    """What differs between two trials of the study in `directory`: choices, scores with their
    difference (first minus second) and its 95 % interval, what is exact, and costs.

    Raises StudyError for a trial that is not there or has no scores yet.
    """
    study, records = tables.open_records(directory, reading=True)
    evidence = Evidence.of(directory)
    a, b = (tables.find_trial(records, number, directory) for number in (first, second))
    for record in (a, b):
        if not record.scores or not record.name:
            raise StudyError(
                f"trial {record.number} has no scores yet "
                f"({state_word(record.state)}); compare trials that reached a rung"
            )
    factors = [_factors(record) for record in (a, b)]
    names = variants.differing(*factors)
    scores = {
        name: _score(evidence, a, b, name)
        for name in (*INTERVAL_SCORES, *ERRORS, *OTHER_SCORES)
        if all(is_number((r.scores or {}).get(name)) for r in (a, b))
    }
    costs = {
        name: [r.attributes.get(name, (r.scores or {}).get(name)) for r in (a, b)] for name in COSTS
    }
    return {
        "score": task_score(study.data.task),
        "trials": [tables.trial_row(study, r, evidence) for r in (a, b)],
        "choices": {name: [f.get(name, "none") for f in factors] for name in names},
        "scores": scores,
        "exact": [r.attributes.get("exact") for r in (a, b)],
        "surviving": [r.attributes.get("surviving") for r in (a, b)],
        "costs": costs,
    }


def _factors(record: TrialRecord) -> dict[str, str]:
    """What was chosen; of a model from outside only what it is."""
    if record.architecture is None:
        return {"model": str(record.name)}
    return dict(variants.factors(candidate_of(record), widths=True))


def _score(evidence: Evidence, a: TrialRecord, b: TrialRecord, name: str) -> dict[str, Any]:
    between = evidence.difference(a, b, name)
    values = [(r.scores or {})[name] for r in (a, b)]
    return {
        "values": values,
        "difference": {"value": values[0] - values[1]} if between is None else between.as_dict(),
        "text": "" if between is None else between.points(),
    }


def compare_lines(value: dict[str, Any]) -> list[str]:
    """The comparison's heading and notes as text; `compare_cells` is its table."""
    a, b = value["trials"]
    lines = [f"{row['trial']}: {row['architecture'] or row['model']}" for row in (a, b)]
    if a["epoch"] != b["epoch"]:
        lines.append(
            f"note: scores are those after {a['epoch']} and {counted(b['epoch'], 'epoch')}"
        )
    overs = {s["difference"].get("over") for s in value["scores"].values()} - {None}
    counts = [s["difference"]["n"] for s in value["scores"].values() if "n" in s["difference"]]
    if counts:
        how = (
            "not paired: one of them does not keep which images it classified correctly"
            if overs == {"images, unpaired"}
            else "paired where a score is a share of images"
            if value["score"] == "accuracy"
            else "paired on equal resamples of the images"
        )
        lines.append(
            f"differences are of {counts[0]:,} validation images, with 95 % intervals; {how}"
        )
    return lines


def compare_cells(value: dict[str, Any]) -> tuple[list[Column], list[list[str]]]:
    """The comparison as the cells of a table."""
    a, b = (str(row["trial"]) for row in value["trials"])
    cells = [[name, *values, ""] for name, values in value["choices"].items()]
    for name, score in value["scores"].items():
        share = name in (*INTERVAL_SCORES, *ERRORS)
        texts = [percent(v) if share else formatted(v, ".3g") for v in score["values"]]
        p = score["difference"].get("p")
        note = score["text"] + (f", McNemar p {p:.2g}" if p is not None else "")
        title = in_words(name.replace("_", " "), value["score"])
        cells.append([title + (" %" if share else ""), *texts, note])
    cells.append(["exact", *("yes" if e else "no" for e in value["exact"]), ""])
    survivors = [" ".join(map(str, s or ["-"])) for s in value["surviving"]]
    cells.append(["unchanged under", *survivors, ""])
    for name, values in value["costs"].items():
        if all(map(is_number, values)):
            texts = [
                short(v) if name in ("params", "macs") else formatted(v, ".3g") for v in values
            ]
            ratio = f"{values[0] / values[1]:.2f} times" if values[1] else ""
            cells.append([name, *texts, ratio])
    columns = [Column(""), Column(f"trial {a}"), Column(f"trial {b}"), Column(f"{a} minus {b}")]
    return columns, cells


def pair_rows(
    study: Study, records: Sequence[TrialRecord], evidence: Evidence
) -> tuple[list[dict[str, Any]], list[Column], list[list[str]]]:
    """The paired comparisons inside a study, as values and as the cells of a table."""
    rows = pairs.summarise_pairs(pairs.find_pairs(study, records), evidence)
    name = task_score(study.data.task)
    columns = [
        Column("what differs"),
        Column("first"),
        Column("second"),
        Column("pairs", True),
        *(Column(f"{prefix}{name}, points", True) for prefix in ("", "symmetry ")),
        Column(""),
    ]
    cells = [
        [
            row["factor"],
            row["first"],
            row["second"],
            str(row["n"]),
            *(row["texts"].get(score, "-") for score in pairs.SCORES),
            ("one pair: the interval is over images" if row["n"] == 1 else "thin")
            if row["thin"]
            else "",
        ]
        for row in rows
    ]
    return rows, columns, cells


def control_rows(
    study: Study, records: Sequence[TrialRecord], evidence: Evidence
) -> tuple[dict[str, Any], list[Column], list[list[str]]]:
    """Which controls the winner beats, as values and as the cells of a table."""
    said = controls.comparison(study, records, evidence)
    names = list(dict.fromkeys(n for row in said["controls"] for n in row["texts"]))
    score = task_score(study.data.task)
    columns = [
        Column("control"),
        Column("trial", True),
        Column("params", True),
        Column("MACs", True),
        *(Column(f"{in_words(name.replace('_', ' '), score)}, points", True) for name in names),
        Column("the control is"),
    ]
    cells = [
        [
            str(row["control"]),
            str(row["trial"]),
            short(row["params"]),
            short(row["macs"]),
            *(row["texts"].get(name, "-") for name in names),
            row["outcome"]
            if row["state"] == "complete"
            else row["reason"] or state_word(row["state"]),
        ]
        for row in said["controls"]
    ]
    return said, columns, cells


def control_text(said: dict[str, Any]) -> str:
    """What the controls come to, in a sentence; empty without any."""
    rows = said["controls"]
    if said["winner"] is None or not rows:
        return (
            f"{counted(said['of_others'], 'control')} of an earlier winner; `equisearch resume` "
            "trains those of the present one"
            if said["of_others"]
            else ""
        )
    complete = [row for row in rows if row["state"] == "complete"]
    beaten = [row for row in complete if row["outcome"] == "beaten"]
    return (
        f"trial {said['winner']} beats {len(beaten)} of "
        f"{counted(len(complete), 'control')}: better in one "
        "score and worse in none, by 95 % intervals; differences are trial "
        f"{said['winner']} minus the control"
    )
