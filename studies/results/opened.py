"""A study from Python: `start` and `resume` run it, `open_study` reads it; its trials and front are
tables, for pandas and for notebooks. `check` and `train` are the commands of these names.

Reading imports neither torch nor optuna nor ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from searchspace.architecture import Architecture
from searchspace.recipe import Candidate
from studies.config import Study, dump, parse
from studies.evidence.intervals import Evidence
from studies.journal.directory import read_study
from studies.journal.stored import read_stored
from studies.markup import Html, html, joined_html, svg_html, table_html
from studies.output import Column, flattened
from studies.results import tables as views
from studies.tasks import task_score

if TYPE_CHECKING:
    import pandas

    from studies.workers.arrays import ArrayData
    from studies.workers.executors import Listener

PANDAS_REMEDY = (
    "to_frame needs pandas, which is not installed; install it with `pip install pandas`, or read "
    "the rows of the table themselves, which hold the same values"
)
MOST_ROWS = 200  # rows of a table in a notebook


@dataclass(frozen=True)
class TrialTable(Sequence[Mapping[str, Any]]):
    """Trials of a study: a sequence of mappings with the keys of `--format json`, which a notebook
    shows as a table.
    """

    rows: tuple[Mapping[str, Any], ...]
    columns: tuple[Column, ...] = field(repr=False)
    cells: tuple[Sequence[str], ...] = field(repr=False)
    figure: Callable[[], Html] = field(default=lambda: Html(""), repr=False)  # below it

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Mapping[str, Any], ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """One row, or those of a slice."""
        return self.rows[index]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """The rows in their order."""
        return iter(self.rows)

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The best compromise of a front; None for an empty front and for other tables."""
        return next((row for row in self.rows if row.get("knee")), None)

    def to_frame(self) -> pandas.DataFrame:
        """A pandas data frame with a row per trial, indexed by its number; inner keys are dotted,
        such as `values.accuracy`. Raises ImportError, with the remedy, without pandas.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError(PANDAS_REMEDY) from None
        frame = pandas.DataFrame([flattened(dict(row)) for row in self.rows])
        return frame.set_index("trial") if len(frame) else frame

    def _repr_html_(self) -> str:
        """What a notebook shows: the first 200 rows, and the figure."""
        left_out = len(self.cells) - MOST_ROWS
        note = html("<p>and {} more</p>", left_out) if left_out > 0 else Html("")
        return joined_html([table_html(self.columns, self.cells[:MOST_ROWS]), note, self.figure()])


@dataclass(frozen=True)
class StudyDirectory:
    """A study on disk. Every property reads the directory anew, so a running study can be watched;
    nothing here changes the journal.
    """

    path: Path

    @property
    def study(self) -> Study:
        """The study file, validated, except for values that an earlier version accepted."""
        return read_stored(self.path)

    @property
    def study_file(self) -> str:
        """The study file as YAML with every value written out."""
        return dump(self.study)

    @property
    def status(self) -> dict[str, Any]:
        """The trials by state, size and hypervolume of the front, and which process drives it."""
        return views.status(self.path)

    @property
    def trials(self) -> TrialTable:
        """Every trial, in the order of their numbers."""
        rows, columns, cells = views.trial_rows(self.path)
        return TrialTable(tuple(rows), tuple(columns), tuple(cells))

    @property
    def front(self) -> TrialTable:
        """The Pareto front, best first objective first; `front.best` is the best compromise."""
        study, records = views.open_records(self.path, reading=True)
        rows, columns, cells = views.front_rows(study, records, Evidence.of(self.path))

        def figure() -> Html:
            from studies.results import front_plot

            if not rows or len(study.objectives) < 2:
                return Html("")
            trials = front_plot.plotted_trials(study, records)
            return svg_html(
                front_plot.figure(trials, study.objectives, task_score(study.data.task))
            )

        return TrialTable(tuple(rows), tuple(columns), tuple(cells), figure)

    def trials_frame(self) -> pandas.DataFrame:
        """`trials.to_frame()`."""
        return self.trials.to_frame()

    def export(
        self,
        trial: int,
        out: Path | str | None = None,
        *,
        force: bool = False,
        run_code: bool = False,
    ) -> Path:
        """The path of the bundle of a complete trial, as `equisearch export` writes it; of a model
        from outside the path of its folder, with `run_code` alone.
        """
        from studies.results.export_trial import export_trial

        return export_trial(self.path, trial, out, force=force, run_code=run_code)

    def retrain(
        self,
        *,
        seeds: int = 3,
        epochs: int | None = None,
        trials: Sequence[int] | None = None,
        workers: int | None = None,
        keep_validation: bool = False,
    ) -> list[dict[str, Any]]:
        """The test scores of the front, or of `trials`, trained again with several seeds: a mapping
        per trial, with `{"mean", "std", "n"}` for each score, as `equisearch retrain` gives them.

        They train on training and validation images (`keep_validation`: on training images alone),
        on the workers that the study names, `workers` at a time if given. Each mapping has under
        `selection` the search scores beside the test scores.
        """
        from studies.results import retrain as retraining
        from studies.results.selection import with_selection

        overrides = {"training.epochs": epochs, "resources.workers": workers}
        study = retraining.retraining_study(self.path, overrides)
        jobs = retraining.front_jobs(
            study, self.path, seeds=seeds, trials=trials, keep_validation=keep_validation
        )
        rows = retraining.summarise_seeds(retraining.run_jobs(jobs, study, self.path))
        return [retraining.row_as_dict(row) for row in with_selection(self.path, rows)]

    def report(self, out: Path | None = None) -> Path:
        """The path of the page that `equisearch report` writes."""
        from studies.results.report import write_report

        return write_report(self.path, out)

    def _repr_html_(self) -> str:
        """What a notebook shows: the status and the front."""
        lines = (html("<p>{}</p>", line) for line in views.status_lines(self.status))
        return joined_html([*lines, Html(self.front._repr_html_())])


def open_study(directory: Path | str) -> StudyDirectory:
    """The study in `directory`, to read and export from. Raises StudyError if there is none."""
    opened = StudyDirectory(Path(directory))
    views.open_records(opened.path, reading=True)
    return opened


def start(
    study: Study,
    directory: Path | str,
    *,
    data: ArrayData | None = None,
    classes: Sequence[str] | None = None,
    enqueue: Sequence[Candidate | Architecture | str] = (),
    warm_start: Path | str | None = None,
    probe: bool = True,
    listener: Listener | None = None,
) -> StudyDirectory:
    """Runs a new study to its end, or until Ctrl-C, and returns it: `equisearch start`.

    It runs in this process where the study has one worker (`resources: {workers: 1}`), else on
    Ray. `data` takes the place of the study's images: NumPy arrays or torch tensors (images,
    labels), or a mapping with train_images, train_labels and perhaps val_images, val_labels,
    test_images and test_labels (`trainers.data.formats.storing`); they are stored in the directory.
    `classes` names the labels 0, 1, ... `enqueue` are candidates to try first; `warm_start` is
    the directory of an earlier study over the same space; `probe` checks the declared symmetry
    against the data first; `listener` receives each `studies.workers.executors.Event`. Raises
    StudyError, ValueError or OSError before anything is written.
    """
    from studies.workers.arrays import stored_in
    from studies.workers.executors import run_study
    from studies.workers.launch import new_driver

    path = Path(directory)
    with (
        stored_in(path, study, data, classes) as study,
        new_driver(
            study,
            path,
            enqueue=[str(candidate) for candidate in enqueue],
            warm_start=None if warm_start is None else Path(warm_start),
            probe=probe,
        ) as driver,
    ):
        run_study(driver, listener=listener)
    return open_study(path)


def resume(
    directory: Path | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    trust: bool = False,
    accept_data: bool = False,
    pairs: int = 0,
    listener: Listener | None = None,
) -> StudyDirectory:
    """Continues a study to its end, or until Ctrl-C, and returns it: `equisearch resume`.

    `overrides` are dotted keys that may change, such as `{"search.trials": 40}`. `trust` takes over
    what in the directory runs programs, whoever wrote it; `accept_data` goes on with data that has
    changed; `pairs` partners of trials that differ in one thing are trained at the end. Raises
    StudyError.
    """
    from studies.workers.executors import run_study
    from studies.workers.launch import open_driver

    path = Path(directory)
    revised = parse(dump(read_study(path)), name="the stored study", overrides=overrides)
    with open_driver(
        path, revised, trusted=trust, accept_data=accept_data, partners=pairs
    ) as driver:
        run_study(driver, listener=listener)
    return open_study(path)


def train(
    study: Study,
    candidate: Candidate | Architecture | str,
    *,
    data: ArrayData | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    out: Path | str | None = None,
) -> dict[str, Any]:
    """The scores and the accuracy by angle of one candidate (or published network's name),
    trained as the study says: `equisearch train --format json`.

    `data` and `classes` are those of `start`. `out` keeps the checkpoint, from which the next call
    goes on.
    """
    from studies.results.check import named_candidate
    from studies.results.train_one import train_one
    from studies.workers.arrays import stored_meanwhile

    folder = None if out is None else Path(out)
    with stored_meanwhile(study, data, classes) as study:
        return train_one(study, named_candidate(str(candidate)), seed=seed, out=folder)
