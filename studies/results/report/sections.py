"""The tables of the page about a study: how the front grew, scores by what is built, importance of
the dimensions, test scores, failures, the study file. Nothing here imports torch, optuna or ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from searchspace.geometry import size_text
from searchspace.recipe import Candidate
from studies.config import Study, dump
from studies.evidence.front import scored
from studies.journal.directory import VERSIONS
from studies.journal.trial import TrialRecord
from studies.markup import Html, html
from studies.markup import table_html as _table
from studies.output import Column, is_number, percent
from studies.pareto import dominates, front_volume, larger_is_better
from studies.results.report.importance import importances
from studies.results.retrain import MeanStd
from studies.tasks import in_words, score_name, task_score

# What architectures are compared by: degrees of equivariance first.
FACETS: dict[str, Callable[[Candidate], str]] = {
    "group of the stages": lambda a: " to ".join(
        dict.fromkeys(stage.annotation for stage in a.architecture.stages)
    ),
    "equivariance loss": lambda a: "+".join(loss.kind for loss in a.recipe.losses) or "none",
    "augmentation": lambda a: "the study's" if a.recipe.augment is None else str(a.recipe.augment),
    "head": lambda a: a.architecture.head,
    "filters": lambda a: a.architecture.filters,
    "invariant share": lambda a: f"{max(s.invariant for s in a.architecture.stages):g}",
    "coordinates": lambda a: a.architecture.coordinates,
    "streams": lambda a: str(len(a.architecture.streams)),
    "orbit average": lambda a: str(a.architecture.orbit),
    "input size": lambda a: f"{size_text(a.architecture.size)} px",
}


def growth(study: Study, records: Sequence[TrialRecord]) -> list[float]:
    """The front's hypervolume after each finished trial of the search, in their order."""
    volumes: list[float] = []
    front: dict[tuple[float, ...], tuple[float, ...]] = {}
    volume = 0.0
    counted = {record.number for record in scored(records)}
    finished = [(r.order, r) for r in records if r.order is not None and r.kind == "search"]
    for _, record in sorted(finished, key=lambda pair: pair[0]):
        if record.number in counted and record.values:
            point = larger_is_better(record.values, study.objectives)
            if point not in front and not any(dominates(other, point) for other in front):
                front = {
                    other: values for other, values in front.items() if not dominates(point, other)
                } | {point: record.values}
                volume = front_volume(list(front.values()), study.objectives)
        volumes.append(volume)
    return volumes


def compared_html(study: Study, records: Sequence[TrialRecord]) -> Iterable[Html]:
    """Scores of complete trials by what they are built of."""
    compared = [
        (Candidate.parse(r.architecture), r.scores)
        for r in scored(records)
        if r.kind == "search"
        and r.architecture
        and r.scores
        and all(is_number(r.scores.get(name)) for name in ("accuracy", "symmetry_accuracy"))
    ]
    if not compared:
        return
    yield html(
        "<h2>Complete trials by what they are built of</h2><p class='note'>Validation scores, "
        "mean &plusmn; standard deviation over trials. The search chose "
        "the trials, which differ in more than one choice: differences here suggest, and "
        "<code>equisearch retrain</code> with seeds compares.</p>"
    )
    columns = [
        Column("choice"),
        Column("trials", True),
        Column(f"{task_score(study.data.task)} %", True),
        Column("symmetry %", True),
        Column("best symmetry %", True),
        Column("exact", True),
    ]
    exact = {r.architecture: bool(r.attributes.get("exact")) for r in records if r.architecture}
    for name, facet in FACETS.items():
        groups: dict[str, list[tuple[Candidate, dict[str, Any]]]] = {}
        for candidate, scores in compared:
            groups.setdefault(facet(candidate), []).append((candidate, scores))
        if len(groups) < 2:
            continue
        cells = []
        for value, members in sorted(groups.items(), key=lambda pair: natural(pair[0])):
            symmetry = [scores["symmetry_accuracy"] for _, scores in members]
            cells.append(
                [
                    value,
                    str(len(members)),
                    MeanStd.of([scores["accuracy"] for _, scores in members]).percent(),
                    MeanStd.of(symmetry).percent(),
                    percent(max(symmetry)),
                    str(sum(exact.get(str(candidate), False) for candidate, _ in members)),
                ]
            )
        yield html("<h3>By {}</h3>", name)
        yield _table(columns, cells)


def tested_html(rows: Sequence[Mapping[str, Any]]) -> Iterable[Html]:
    """The test scores of what `retrain` has trained; `rows` are its summaries."""
    for epochs in sorted({row["epochs"] for row in rows}):
        chosen = [row for row in rows if row["epochs"] == epochs]
        yield html(
            "<h2>Test scores after {} epochs</h2><p>Trained again by <code>equisearch "
            "retrain</code>: mean &plusmn; standard deviation over n seeds, "
            "{} test images.</p>",
            epochs,
            chosen[0]["num_test"],
        )
        columns = [
            Column("trial"),
            Column("n", True),
            Column("trained on"),
            Column(f"{score_name(chosen[0])} %", True),
            Column("symmetry %", True),
            Column("worst element %", True),
            Column("mean over angles %", True),
            Column("architecture"),
        ]
        yield _table(
            columns,
            [
                [
                    str(row["name"]).removeprefix("trial "),
                    str(row["n"]),
                    str(row["trained_on"]),
                    *(
                        row[key].percent()
                        for key in (
                            "accuracy",
                            "symmetry_accuracy",
                            "symmetry_accuracy_worst",
                            "angle_mean",
                        )
                    ),
                    row["architecture"],
                ]
                for row in chosen
            ],
        )


def ended_html(records: Sequence[TrialRecord]) -> Iterable[Html]:
    """Why trials failed or were refused, most frequent reasons first; nothing where none did."""
    reasons = Counter(
        (r.state, str(r.reason)) for r in records if r.state in ("failed", "refused") and r.reason
    )
    if reasons:
        yield html("<h2>What did not become a result</h2>")
        yield _table(
            [Column("trials", True), Column("state"), Column("reason")],
            [[str(n), state, str(reason)] for (state, reason), n in reasons.most_common()],
        )


def importance_html(study: Study, records: Sequence[TrialRecord]) -> Iterable[Html]:
    """How much each dimension matters for each objective; nothing where there are few trials."""
    shares = importances(study, records)
    if not shares:
        return
    names = dict.fromkeys(name for item in shares for name in item.shares)
    yield html(
        "<h2>What matters</h2><p class='note'>Share of what a random forest over {} complete "
        "trials explains (permutation importance); the search did not draw trials at random, so "
        "this is a hint.</p>",
        shares[0].trials,
    )
    yield _table(
        [
            Column("dimension"),
            *(
                Column(in_words(item.objective, task_score(study.data.task)), True)
                for item in shares
            ),
        ],
        [
            [
                "explained, of 100 %",
                *(f"{100 * max(0.0, item.explained):.0f} %" for item in shares),
            ],
            *(
                [
                    name,
                    *(
                        f"{100 * item.shares[name]:.0f} %" if name in item.shares else "-"
                        for item in shares
                    ),
                ]
                for name in names
            ),
        ],
    )


def setting_html(directory: Path, study: Study) -> Iterable[Html]:
    """The study file and the versions of the libraries, folded."""
    versions = directory / VERSIONS
    yield html("<details><summary>The study file</summary><pre>{}</pre></details>", dump(study))
    if versions.is_file():
        yield html(
            "<details><summary>Versions</summary><pre>{}</pre></details>",
            versions.read_text(encoding="utf-8", errors="replace"),
        )


def natural(text: str) -> tuple:
    """A key that puts C4 before C16."""
    digits = "".join(c for c in text if c.isdigit())
    return text.rstrip("0123456789 px"), int(digits) if digits else 0, text
