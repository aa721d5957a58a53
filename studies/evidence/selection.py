"""Which trials a command shows: `--where CONDITION`, `--knee`, `--best OBJECTIVE`. Nothing here
imports torch, optuna or ray.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from searchspace.geometry import size_text
from searchspace.recipe import Candidate
from studies.config import Study
from studies.errors import StudyError
from studies.evidence.front import best_compromise, front_members
from studies.evidence.intervals import ERRORS, INTERVAL_SCORES
from studies.journal.trial import TrialRecord, state_word
from studies.output import is_number
from studies.pareto import DIRECTIONS, SCORE_OF
from trainers.scores import Scores

if TYPE_CHECKING:
    from studies.evidence.conditions import ColumnKind

RowType = TypeVar("RowType")
FACTS = ("trial", "state", "kind", "architecture", "params", "macs", "exact", "family", "group")
CHOICES = (
    "input_size",
    "head",
    "filters",
    "orbit",
    "equivariance_loss",
    "augment",
    "learning_rate",
    "seed",
)
# how JSON calls a trial that a rung stopped; a condition may do so too
PRUNED_STATE = re.compile(r"""(\bstate\s*(?:==?|!=)\s*["']?)(pruned)\b""")
SCORE_COLUMNS = tuple(field.name for field in fields(Scores))
COLUMNS = tuple(
    dict.fromkeys((*FACTS, *CHOICES, *SCORE_COLUMNS, *SCORE_OF, "stopped_at", "reason"))
)
SHARE_COLUMNS = (*INTERVAL_SCORES, *ERRORS, *SCORE_OF)
COLUMN_KINDS: dict[str, ColumnKind] = {
    **dict.fromkeys(COLUMNS, "number"),
    **dict.fromkeys(("state", "kind", "architecture", "family", "group", "head"), "text"),
    **dict.fromkeys(("filters", "orbit", "equivariance_loss", "augment", "reason"), "text"),
    "exact": "flag",
    "input_size": "either",  # 28, or 48x64
    "learned": "either",
}


def columns(record: TrialRecord) -> dict[str, Any]:
    """What a condition may say of a trial, by name; what is not known is None."""
    facts, scores = record.attributes, record.scores or {}
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row.update({name: facts.get(name) for name in FACTS if name in facts})
    row.update({name: scores[name] for name in SCORE_COLUMNS if name in scores})
    row.update({name: scores.get(score) for name, score in SCORE_OF.items()})
    row.update(
        trial=record.number,
        state=state_word(record.state),
        kind=record.kind,
        architecture=record.architecture,
        learning_rate=record.learning_rate,
        seed=facts.get("seed"),
        stopped_at=record.stopped_at,
        reason=record.reason,
    )
    try:
        candidate = Candidate.parse(str(record.architecture))
    except ValueError:
        return row
    from studies.evidence.variants import groups_text, options_of

    architecture = candidate.architecture
    options = {"loss": "none", "augment": "none", "orbit": "C1", **options_of(candidate)}
    row.update({name: options[name] for name in ("augment", "orbit")})
    row["equivariance_loss"] = options["loss"]
    size = size_text(architecture.size)
    row.update(head=architecture.head, filters=architecture.filters)
    row.update(group=groups_text(architecture), input_size=int(size) if size.isdigit() else size)
    return row


def filtered(records: Sequence[TrialRecord], where: str | None) -> list[TrialRecord]:
    """The trials that meet a condition; all without one. Raises ConditionError."""
    if where is None:
        return list(records)
    from studies.evidence.conditions import Condition

    where = PRUNED_STATE.sub(lambda found: found[1] + state_word(found[2]), where)
    condition = Condition.parse(where).require(COLUMNS, SHARE_COLUMNS, COLUMN_KINDS)
    return [record for record in records if condition(columns(record))]


def number_of(
    study: Study, records: Sequence[TrialRecord], knee: bool, best: str | None
) -> int | None:
    """The trial that `--knee` or `--best` asks for: of the front of these trials, the best
    compromise, or the member that is best in one objective. None where neither is given.

    Raises StudyError for an unknown objective, one that no trial has, and for an empty front.
    """
    if not knee and best is None:
        return None
    if knee and best is not None:
        raise StudyError(
            f"--knee and --best {best} each name one trial of the front; give one of them"
        )
    if best is not None and best not in DIRECTIONS:
        raise StudyError(f"--best {best}: choose one of {', '.join(DIRECTIONS)}")
    front = front_members(study, records)
    chosen = best_compromise(study, front) if best is None else _best(front, best)
    if chosen is None:
        raise StudyError("no complete trial of the search is among those that are shown")
    return chosen.number


def _best(front: Sequence[TrialRecord], objective: str) -> TrialRecord | None:
    sign = 1 if DIRECTIONS[objective] == "maximize" else -1
    values = [(columns(record).get(objective), record) for record in front]
    numbers = [(sign * value, record) for value, record in values if is_number(value)]
    if front and not numbers:
        raise StudyError(f"--best {objective}: no trial of the front has that score")
    return max(numbers, key=lambda entry: entry[0])[1] if numbers else None


def picked(
    rows: Sequence[dict[str, Any]], cells: Sequence[RowType], number: int | None
) -> tuple[list[dict[str, Any]], list[RowType]]:
    """The rows and their cells, of one trial alone where its number is given."""
    places = [i for i, row in enumerate(rows) if number is None or row["trial"] == number]
    return [rows[i] for i in places], [cells[i] for i in places]
