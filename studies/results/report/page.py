"""One self-contained page about a study: `equisearch report`. The answer stands first, then the
front as a plot in which trials open, then the tables. Nothing here imports torch, optuna or ray.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from searchspace.recipe import Candidate
from studies.config import Study
from studies.errors import StudyError
from studies.evidence.controls import comparison
from studies.evidence.intervals import Evidence
from studies.journal.trial import TrialRecord
from studies.markup import Html, html, joined_html
from studies.markup import table_html as _table
from studies.results import tables as views
from studies.results.compare import control_text
from studies.results.front_plot import TITLES
from studies.results.report.answer import Answer, answer
from studies.results.report.evidence import controls_html, pairs_html
from studies.results.report.figures import steps_html
from studies.results.report.plot import axes, data_html, drawings, plot_data
from studies.results.report.sections import (
    compared_html,
    ended_html,
    growth,
    importance_html,
    setting_html,
    tested_html,
)
from studies.results.retrain import summarise_seeds, tested_results
from studies.tasks import in_words, task_score
from studies.workers.declaration import read_declaration
from trainers.files import write_whole

REPORT = "report.html"
STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")


def write_report(directory: Path, out: Path | None = None) -> Path:
    """The path of the page about the study in `directory`, DIR/report.html unless `out` says where.

    Which constraint to use and what it costs, the front as a plot in which each trial opens, the
    scores by degree of equivariance, the test scores of what was retrained, what failed, and the
    study file. It holds its figures and refers to nothing. Raises StudyError if there is no study,
    or the page cannot be written.
    """
    study, records = views.open_records(directory, parameters=True, reading=True)
    path = Path(out) if out is not None else directory / REPORT
    page = _page(directory, study, [_readable(record) for record in records])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, page.encode("utf-8", "backslashreplace"))  # names need not be UTF-8
    except OSError as error:
        raise StudyError(
            f"the page cannot be written to {path}: {error.strerror or error}; give another "
            "place with --out"
        ) from error
    return path


def _readable(record: TrialRecord) -> TrialRecord:
    """The trial; one whose architecture this version cannot read as one that is no result."""
    if not record.architecture:
        return record
    try:
        Candidate.parse(record.architecture)
    except ValueError as error:
        reason = f"this version does not read its architecture: {error}"
        return replace(record, state="refused", values=None, attributes={"reason": reason})
    return record


def _page(directory: Path, study: Study, records: Sequence[TrialRecord]) -> str:
    evidence, tested = Evidence.of(directory), _tested(directory)
    by_trial = _by_trial(tested)
    declaration = read_declaration(directory)
    said = answer(study, records, evidence, by_trial, declaration.warnings if declaration else ())
    angles = {
        number: {angle: share.mean for angle, share in row["by_angle"].items()}
        for number, row in by_trial.items()
    }
    text = control_text(comparison(study, records, evidence))
    said = replace(said, evidence=(*said.evidence, *([f"{_capital(text)}."] if text else [])))
    data = plot_data(study, records, evidence, angles)
    title = f"Study {directory.absolute().name}"
    content = [
        html("<h1>{}</h1>", title),
        *_answer_html(said),
        *_front(study, records, evidence, data),
        *controls_html(study, records, evidence),
        *pairs_html(study, records, evidence),
        *tested_html(tested),
        *_growth(study, records),
        *importance_html(study, records),
        *compared_html(study, records),
        *ended_html(records),
        *setting_html(directory, study),
        *_status(directory, records),
    ]
    return _document(title, content, data if data["trials"] else None, drawings(study, records))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _tested(directory: Path) -> list[dict[str, Any]]:
    """The summaries of what was retrained, for each number of epochs."""
    by_length: dict[int, list[dict[str, Any]]] = {}
    for result in tested_results(directory):
        by_length.setdefault(result["epochs"], []).append(result)
    return [row for _, results in sorted(by_length.items()) for row in summarise_seeds(results)]


def _by_trial(rows: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Trial -> the summary of its longest training on most images."""
    longest: dict[int, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["epochs"], len(row["trained_on"]))):
        number = str(row["name"]).removeprefix("trial ")
        if number.isdigit():
            longest[int(number)] = row
    return longest


def _answer_html(said: Answer) -> Iterable[Html]:
    def listed(sentences: Sequence[str]) -> Html:
        return html("<ul>{}</ul>", joined_html([html("<li>{}</li>", _coded(t)) for t in sentences]))

    parts = [html("<p>{}</p>", said.headline)]
    for heading, sentences in (("What it costs", said.cost), ("How sure", said.evidence)):
        if sentences:
            parts += [html("<strong>{}</strong>", heading), listed(sentences)]
    yield html('<section class="answer">{}</section>', joined_html(parts))
    if said.cautions:
        yield html(
            '<section class="answer caution"><strong>Before you rely on it</strong>{}</section>',
            listed(said.cautions),
        )


def _coded(sentence: str) -> Html:
    """The sentence with what stands between backquotes as code."""
    parts = sentence.split("`")
    return joined_html(
        (html("<code>{}</code>", p) if n % 2 else p for n, p in enumerate(parts)), ""
    )


def _front(
    study: Study, records: Sequence[TrialRecord], evidence: Evidence, data: Mapping[str, Any]
) -> Iterable[Html]:
    rows, columns, cells = views.front_rows(study, records, evidence)
    if not rows:
        yield html("<h2>Front</h2><p>No trial is complete yet.</p>")
        return
    yield html("<h2>Front</h2>")
    yield _plot_html(study)
    yield html(
        '<p class="note">Validation scores with their 95 % intervals over images; * marks the best '
        "compromise; members are tied where no objective tells them apart.</p>"
    )
    yield _table(columns, cells)


def _plot_html(study: Study) -> Html:
    """The controls of the plot, the plot, and the place where a trial opens."""

    def chooser(name: str, label: str, chosen: int) -> Html:
        options = [
            html(
                "<option value={}{}>{}</option>",
                str(place),
                Html(" selected") if place == chosen else Html(""),
                in_words(TITLES[axis], task_score(study.data.task)),
            )
            for place, axis in enumerate(axes(study))
        ]
        return html(
            "<label>{} <select id={}>{}</select></label>", label, name, joined_html(options, "")
        )

    return html(
        '<div class="split"><div><div class="controls">{}{}<label><input type="checkbox" id="only">'
        ' the front only</label></div>\n<svg id="plot" viewBox="0 0 640 400" role="group" '
        'aria-label="complete trials by two scores"></svg>\n<p class="note"><span class="key '
        'keyexact"></span>exact under the declared group&emsp;<span class="key keybroken"></span>'
        "not exact<br>Large: on the front, with 95 % intervals over images; largest: the best "
        "compromise; hollow: cannot be told from it. Click a trial, or press Tab and Enter, to "
        "open it.</p><noscript><p>The plot needs JavaScript; the tables do not."
        '</p></noscript></div>\n<section id="trial" tabindex="-1" aria-live="polite"></section>'
        "</div>",
        chooser("x", "right", 0),
        chooser("y", "up", 1 if len(study.objectives) > 1 else axes(study).index("macs")),
    )


def _growth(study: Study, records: Sequence[TrialRecord]) -> Iterable[Html]:
    volumes = growth(study, records)
    if len(volumes) > 1:
        yield html("<h2>How the front grew</h2>")
        yield steps_html(volumes, "finished trials", "hypervolume")


def _status(directory: Path, records: Sequence[TrialRecord]) -> Iterable[Html]:
    finished = max((str(record.finished) for record in records if record.finished), default=None)
    lines = [
        *views.status_lines(views.status(directory)),
        *([f"last trial finished {finished[:16].replace('T', ' ')} UTC"] if finished else []),
    ]
    yield html(
        "<details><summary>State of the study</summary>{}</details>",
        joined_html(html("<p>{}</p>", line) for line in lines),
    )


def _document(
    title: str, content: Sequence[Html], data: Mapping[str, Any] | None, drawn: Sequence[Html]
) -> str:
    """The whole page: a browser runs its own script and nothing else, and loads nothing."""
    style = Html(STYLE.read_text(encoding="utf-8"))
    script = Html(SCRIPT.read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:"
    )
    scripts = [] if data is None else [data_html(data), html("<script>{}</script>", script)]
    return html(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>{}</title><style>{}</style></head>\n<body>\n{}\n</body></html>\n",
        policy,
        title,
        style,
        joined_html([*content, *(drawn if data is not None else []), *scripts]),
    )
