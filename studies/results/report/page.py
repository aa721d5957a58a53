"""One self-contained page about a study: `equisearch report`. Nothing here imports torch, optuna or
ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace.geometry import size_text
from searchspace.recipe import Candidate
from studies.config import Study, dump
from studies.errors import StudyError
from studies.evidence.front import scored
from studies.evidence.intervals import Evidence
from studies.journal.directory import VERSIONS
from studies.journal.trial import TrialRecord
from studies.markup import Html, html, joined
from studies.markup import svg_html as _svg
from studies.markup import table_html as _table
from studies.output import Column, is_number, percent
from studies.pareto import dominates, front_volume, signed
from studies.results import front_plot as scatter
from studies.results import tables as views
from studies.results.retrain import MeanStd, summarised, tested_results
from trainers.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"
# What architectures are compared by: degrees of equivariance first.
FACETS: dict[str, Callable[[Candidate], str]] = {
    "group of the stages": lambda a: " to ".join(
        dict.fromkeys(str(stage.group) for stage in a.architecture.stages)
    ),
    "equivariance loss": lambda a: "+".join(loss.kind for loss in a.recipe.losses) or "none",
    "augmentation": lambda a: "the study's" if a.recipe.augment is None else str(a.recipe.augment),
    "head": lambda a: a.architecture.head,
    "filters": lambda a: a.architecture.filters,
    "invariant share": lambda a: f"{max(s.invariant for s in a.architecture.stages):g}",
    "coordinates": lambda a: a.architecture.coordinates,
    "orbit average": lambda a: str(a.architecture.orbit),
    "input size": lambda a: f"{size_text(a.architecture.size)} px",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
body { color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { padding: .2em .8em; text-align: left; border-bottom: 1px solid #ddd }
.right { text-align: right; font-variant-numeric: tabular-nums }
code, pre { font-size: 13px }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto }
svg { max-width: 100%; height: auto }
.note { color: #666 }
"""


def write_report(directory: Path, out: Path | None = None) -> Path:
    """The path of the page about the study in `directory`, DIR/report.html unless `out` says where.

    Its front and trials, the scores by degree of equivariance, the test scores of what was
    retrained, what failed, and the study file. It holds its figures and refers to nothing. Raises
    StudyError if there is no study, or the page cannot be written.
    """
    study, records = views.open_study(directory, reading=True)
    path = Path(out) if out is not None else directory / REPORT
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _page(directory, study, records))
    except OSError as error:
        raise StudyError(
            f"the page cannot be written to {path}: {error.strerror or error}; give another "
            "place with --out"
        ) from error
    return path


def _page(directory: Path, study: Study, records: Sequence[TrialRecord]) -> str:
    sections = [
        *_front(study, records, Evidence.of(directory)),
        *_compared(study, records),
        *_tested(directory),
        *_ended(records),
        *_setting(directory, study),
    ]
    finished = max((str(record.finished) for record in records if record.finished), default=None)
    title = f"Study {directory.absolute().name}"
    lines = [
        *views.status_lines(views.status(directory)),
        *([f"last trial finished {finished[:16].replace('T', ' ')} UTC"] if finished else []),
    ]
    head = html("<title>{}</title><style>{}</style>", title, Html(STYLE))
    body = joined(
        [html("<h1>{}</h1>", title), *(html("<p>{}</p>", line) for line in lines), *sections]
    )
    return html(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width">{}</head>\n'
        "<body>\n{}\n</body></html>\n",
        head,
        body,
    )


def _front(study: Study, records: Sequence[TrialRecord], evidence: Evidence) -> Iterable[Html]:
    rows, columns, cells = views.front_rows(study, records, evidence)
    if not rows:
        yield html("<h2>Front</h2><p>No trial is complete yet.</p>")
        return
    yield html(
        "<h2>Front</h2><p>Validation scores with their 95 % intervals over images; * marks the "
        "best compromise; members are tied where no objective tells them apart.</p>"
    )
    yield _table(columns, cells)
    if len(study.objectives) > 1:
        yield _svg(scatter.figure(scatter.plotted_trials(study, records), study.objectives))
    yield html("<h2>How the front grew</h2>")
    yield _svg(_growth(study, records))


def _growth(study: Study, records: Sequence[TrialRecord]) -> Figure:
    """A figure of the front's hypervolume over finished trials."""
    from matplotlib.figure import Figure

    volumes: list[float] = []
    front: dict[tuple[float, ...], tuple[float, ...]] = {}
    volume = 0.0
    counted = {record.number for record in scored(records)}
    finished = [(r.order, r) for r in records if r.order is not None and r.kind == "search"]
    for _, record in sorted(finished, key=lambda pair: pair[0]):
        if record.number in counted and record.values:
            point = signed(record.values, study.objectives)
            if point not in front and not any(dominates(other, point) for other in front):
                front = {
                    other: values for other, values in front.items() if not dominates(point, other)
                } | {point: record.values}
                volume = front_volume(list(front.values()), study.objectives)
        volumes.append(volume)
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.step(range(1, len(volumes) + 1), volumes, where="post")
    axes.set(xlabel="finished trials", ylabel="hypervolume", ylim=(0, 1))
    axes.grid(alpha=0.3)
    return figure


def _compared(study: Study, records: Sequence[TrialRecord]) -> Iterable[Html]:
    """Scores of complete trials by what they are built of."""
    compared = [
        (Candidate.parse(r.architecture), r.scores)
        for r in scored(records)
        if r.architecture
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
        Column("accuracy %", True),
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
        for value, found in sorted(groups.items(), key=lambda pair: _natural(pair[0])):
            symmetry = [scores["symmetry_accuracy"] for _, scores in found]
            cells.append(
                [
                    value,
                    str(len(found)),
                    MeanStd.of([scores["accuracy"] for _, scores in found]).percent(),
                    MeanStd.of(symmetry).percent(),
                    percent(max(symmetry)),
                    str(sum(exact.get(str(candidate), False) for candidate, _ in found)),
                ]
            )
        yield html("<h3>By {}</h3>", name)
        yield _table(columns, cells)


def _tested(directory: Path) -> Iterable[Html]:
    """The test scores of what `retrain` has trained."""
    by_length: dict[int, list[dict[str, Any]]] = {}
    for result in tested_results(directory):
        by_length.setdefault(result["epochs"], []).append(result)
    for epochs, results in sorted(by_length.items()):
        rows = summarised(results)
        yield html(
            "<h2>Test scores after {} epochs</h2><p>Trained again by <code>equisearch "
            "retrain</code>: mean &plusmn; standard deviation over n seeds, "
            "{} test images.</p>",
            epochs,
            rows[0]["num_test"],
        )
        columns = [
            Column("trial"),
            Column("n", True),
            Column("accuracy %", True),
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
                for row in rows
            ],
        )


def _ended(records: Sequence[TrialRecord]) -> Iterable[Html]:
    reasons = Counter(
        (r.state, str(r.reason)) for r in records if r.state in ("failed", "refused") and r.reason
    )
    if reasons:
        yield html("<h2>What did not become a result</h2>")
        yield _table(
            [Column("trials", True), Column("state"), Column("reason")],
            [[str(n), state, str(reason)] for (state, reason), n in reasons.most_common()],
        )


def _setting(directory: Path, study: Study) -> Iterable[Html]:
    versions = directory / VERSIONS
    yield html("<h2>The study</h2><pre>{}</pre>", dump(study))
    if versions.is_file():
        yield html(
            "<details><summary>Versions</summary><pre>{}</pre></details>",
            versions.read_text(encoding="utf-8", errors="replace"),
        )


def _natural(text: str) -> tuple:
    """A key that puts C4 before C16."""
    digits = "".join(c for c in text if c.isdigit())
    return text.rstrip("0123456789 px"), int(digits) if digits else 0, text
