"""The report's controls of the winner, and its pairs of trials that differ in one thing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from studies.config import Study
from studies.evidence.intervals import Evidence
from studies.journal.trial import TrialRecord
from studies.markup import Html, html
from studies.markup import table_html as _table
from studies.results.compare import control_rows, control_text, pair_rows


def controls_html(
    study: Study, records: Sequence[TrialRecord], evidence: Evidence
) -> Iterable[Html]:
    """The front's best against its controls."""
    said, columns, cells = control_rows(study, records, evidence)
    if cells or said["of_others"]:
        text = control_text(said)
        yield html("<h2>Controls</h2><p>{}.</p>", text[:1].upper() + text[1:])
    if cells:
        yield _table(columns, cells)


def pairs_html(study: Study, records: Sequence[TrialRecord], evidence: Evidence) -> Iterable[Html]:
    """What trials that differ in one thing say of it."""
    rows, columns, cells = pair_rows(study, records, evidence)
    if not rows:
        return
    yield html(
        "<h2>Pairs</h2><p class='note'>Trials that differ in one thing: mean difference, first "
        "minus second, in percentage points with its 95 % interval, over pairs and the images "
        "that they share. Fewer than three pairs say little; <code>equisearch resume DIR "
        "--pairs N</code> trains more.</p>"
    )
    yield _table(columns, cells)
