"""What the page's script draws: every complete trial with its scores, its curves while it trained,
and its accuracy by element. Nothing here imports torch, optuna or ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from searchspace.exactness import verdict
from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies.config import Study
from studies.evidence.front import best_compromise, front_members, scored
from studies.evidence.intervals import Evidence, interval
from studies.journal.trial import TrialRecord
from studies.markup import Html, html
from studies.output import is_number, short
from studies.pareto import SCORE_OF, SHARES, WORST_EXPONENT
from studies.results.front_plot import TITLES
from studies.tasks import in_words, score_name, task_score
from studies.terminal import plain_text

# beside the objectives, what a plot can have on its axes
PLOT_AXES = ("accuracy", "symmetry_accuracy", "equivariance_error", "params", "macs", "latency")
# of charts by element; the others have no value for each
TITLES_OF_CLASSES = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "worst_class": "accuracy of the worst class",
}
MOST_DRAWINGS = 40  # of networks: those of the front first


def axes(study: Study) -> list[str]:
    """The scores that a plot can show: the objectives first."""
    return list(dict.fromkeys((*study.objectives, *PLOT_AXES)))


def plot_data(
    study: Study,
    records: Sequence[TrialRecord],
    evidence: Evidence,
    angles: Mapping[int, Mapping[str, float]],
) -> dict[str, Any]:
    """The complete trials for the script; `angles` holds the test accuracy by angle, in degrees, of
    trials that were trained again.
    """
    front = front_members(study, records)
    best = best_compromise(study, front)
    on_front = {record.number for record in front}
    names, score = axes(study), task_score(study.data.task)
    return {
        "recommended": None if best is None else best.number,
        "score": score,
        "axes": [
            {"title": plain_text(in_words(TITLES[name], score)), "log": name in WORST_EXPONENT}
            for name in names
        ],
        "trials": [
            {
                "n": record.number,
                "text": plain_text(record.architecture or ""),
                "v": [_value(record, name) for name in names],
                "i": [_interval(record, name, evidence) for name in names],
                "tied": best is not None
                and record is not best
                and record.number in on_front
                and evidence.tied(study.objectives, best, record),
                "front": record.number in on_front,
                "knee": record is best,
                "exact": bool(record.attributes.get("exact")),
                "facts": _facts(study, record, evidence),
                "curves": _curves(record),
                "elements": _elements(study, record, evidence),
                "angles": [
                    [float(angle), 100 * share]
                    for angle, share in angles.get(record.number, {}).items()
                ],
            }
            for record in scored(records)
        ],
    }


def data_html(data: Mapping[str, Any]) -> Html:
    """The data as an element of the page; no value can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return html('<script type="application/json" id="data">{}</script>', Html(safe))


def drawings(study: Study, records: Sequence[TrialRecord]) -> list[Html]:
    """The networks of the front, and of other trials up to 40, with what breaks where; shown when a
    trial is opened.
    """
    front = front_members(study, records)
    on_front = {record.number for record in front}
    others = [record for record in scored(records) if record.number not in on_front]
    figures = []
    for record in [*front, *others][: max(MOST_DRAWINGS, len(front))]:
        if record.architecture:
            architecture = Candidate.parse(record.architecture).architecture
            drawn = Html(verdict(architecture, Group.parse(study.symmetry.group))._repr_html_())
            figures.append(html('<template id="check-{}">{}</template>', record.number, drawn))
    return figures


def _value(record: TrialRecord, name: str) -> float | None:
    scores = record.scores or {}
    value = scores.get(SCORE_OF.get(name, name), record.attributes.get(name))
    if not is_number(value):
        return None
    return round(100 * value, 4) if name in SHARES else float(f"{value:.6g}")


def _interval(record: TrialRecord, name: str, evidence: Evidence) -> list[float] | None:
    """The 95 % interval of a share, in percent; None for other scores."""
    found = None
    if name in SHARES:
        scores, count = record.scores or {}, evidence.count(record)
        found = interval(scores, SCORE_OF.get(name, name), count)
    return None if found is None else [round(100 * end, 2) for end in found]


def _facts(study: Study, record: TrialRecord, evidence: Evidence) -> list[list[str]]:
    scores, facts = record.scores or {}, record.attributes
    images = evidence.count(record)
    rows = []
    for name in dict.fromkeys(("accuracy", "symmetry_accuracy", *study.objectives)):
        value = _value(record, name)
        if value is None:
            continue
        around = interval(scores, SCORE_OF.get(name, name), images)
        unit = " %" if name in SHARES else ""
        text = f"{value:.2f}{unit}" if unit else short(value)
        if around:
            text += f" [{100 * around[0]:.1f}, {100 * around[1]:.1f}]"
        rows.append([in_words(name.replace("_", " "), task_score(study.data.task)), text])
    surviving = facts.get("surviving") or ["e"]
    declared = Group.parse(study.symmetry.group)
    kept = f"{len(surviving)} of {declared.order} elements of {declared}: {' '.join(surviving)}"
    rows.append(["kept exactly", kept])
    for name, title in (("params", "parameters"), ("macs", "multiply-accumulates")):
        if is_number(facts.get(name)):
            rows.append([title, f"{facts[name]:,}"])
    for name, title in (
        ("learning_rate", "learning rate"),
        ("seed", "seed"),
        ("continues", "continues trial"),
        ("inherited_from", "begins with the weights of trial"),
    ):
        if facts.get(name) is not None:
            value = facts[name]
            rows.append([title, f"{value:g}" if isinstance(value, float) else str(value)])
    if images:
        rows.append(["validation images", f"{images:,}"])
    return [[plain_text(title), plain_text(value)] for title, value in rows]


def _curves(record: TrialRecord) -> list[dict[str, Any]]:
    curves = []
    for name in ("accuracy", "symmetry_accuracy"):
        points = [
            [epoch, round(100 * scores[name], 3)]
            for epoch, scores in record.rungs.items()
            if is_number(scores.get(name))
        ]
        title = in_words(name.replace("_", " "), score_name(record.scores))
        curves.append({"name": title, "points": points})
    return curves


def _elements(study: Study, record: TrialRecord, evidence: Evidence) -> list[dict[str, Any]]:
    """For the main score, and for each objective over classes, its value in % for each element that
    was scored.
    """
    charts = {}
    correct = evidence.correctness(record)
    if correct is not None and correct.images:
        charts["accuracy"] = {
            element: bits.bit_count() / correct.images
            for element, bits in zip(correct.elements, correct.bits)
        }
    kept = evidence.element_scores(record)
    over_classes = [name.removeprefix("symmetry_") for name in study.objectives]
    for name in dict.fromkeys(("accuracy", *over_classes)):
        if name in kept and not (name == "auroc" and "accuracy" in kept):  # AUROC is the main score
            charts[name] = kept[name]
    score = score_name(record.scores)
    return [
        {
            "name": in_words(name.replace("_", " "), score) if name == "accuracy"
            else TITLES_OF_CLASSES[name],
            "rows": [[plain_text(e), round(100 * value, 2)] for e, value in values.items()],
        }
        for name, values in charts.items()
    ]  # fmt: skip
