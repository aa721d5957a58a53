"""Export of a trial from its study, and verification of a bundle: the functions behind `equisearch
export` and `equisearch verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studies.config import Study
from studies.errors import ExistsError, StudyError
from studies.journal.directory import TRIALS, require_writable_place
from studies.journal.trial import TrialRecord, state_word
from studies.results.retrained import RetrainedChoice, choose_retrained, trained_network
from studies.results.tables import find_trial, open_records
from studies.results.trained import load_trained

if TYPE_CHECKING:
    from trainers.bundles.export import TrainedNetwork
    from trainers.bundles.verify import BundleReport

EXPORTS = "exports"


def export_trial(
    directory: Path | str,
    number: int,
    out: Path | str | None = None,
    *,
    force: bool = False,
    note: Callable[[str], None] = lambda text: None,
    retrained: str | None = None,
    quantize: bool = False,
    key: Path | str | None = None,
    run_code: bool = False,
) -> Path:
    """The path of the bundle of trial `number`, written to `out` (DIR/exports/00017 unless given).

    `retrained` exports what `retrain` trained and tested instead of the search's network: a seed
    such as `1`, `best` (by validation images) or `mean-of-3` (to DIR/exports/00017-mean-of-3). An
    earlier bundle of the same origin is replaced; another one only with `force`. `quantize` adds
    the network in 8-bit integers, `key` (a private key) signs the bundle, `note` is called with
    what a user should know besides. A model from outside becomes a file of torch.export in that
    folder (`studies.results.export_model`), which executes its function: only with `run_code`.
    Raises StudyError for a trial that is unknown, not complete (unless `retrained`), has no
    checkpoint, or whose data are missing or have changed.
    """
    directory = Path(directory).absolute()
    study, records = open_records(directory)
    record = find_trial(records, number, directory)
    if record.kind == "model" and record.state == "complete":
        return _from_outside(study, record, records, directory, out, note, run_code)
    choice = None if retrained is None else choose_retrained(directory, number, retrained)
    if choice is None:
        _require_complete(record, records)
    origin = _origin(directory, record, choice)
    folder = Path(out) if out is not None else directory / EXPORTS / _name(number, retrained)
    from trainers.bundles.export import export

    _require_place(folder, origin, force)
    if choice is not None:
        note(f"retrained: {choice.how}, of {len(choice.seeds)}")
        trained = trained_network(study, record, choice, origin)
    else:
        trained = _trained(study, record, directory, origin)
    secret = None if key is None else Path(key)
    try:
        bundle = export(trained, folder, force=force, quantize=quantize, key=secret)
    except ValueError as error:
        raise StudyError(f"trial {number}: {error}") from error
    _note_missing(bundle, note)
    return bundle


def _require_place(folder: Path, origin: dict[str, Any], force: bool) -> None:
    """Raises ExistsError where another thing is there, StudyError where writing is refused."""
    from trainers.bundles.export import check_place

    try:
        check_place(folder, origin, force)
    except ValueError as error:
        raise ExistsError(str(error)) from None
    require_writable_place(folder.parent, "give another folder with --out")


def _name(number: int, retrained: str | None) -> str:
    """Of the folder of a bundle."""
    if retrained is None:
        return f"{number:05d}"
    return f"{number:05d}-{f'seed{int(retrained)}' if retrained.isdigit() else retrained}"


def _from_outside(
    study: Study,
    record: TrialRecord,
    records: list[TrialRecord],
    directory: Path,
    out: Path | str | None,
    note: Callable[[str], None],
    run_code: bool,
) -> Path:
    from studies.results.export_model import export_model, require_code

    if not run_code:
        require_code(study, record, records)
    folder = directory / EXPORTS / f"{record.number:05d}" if out is None else Path(out)
    return export_model(study, record, directory, folder, note)


def _note_missing(bundle: Path, note: Callable[[str], None]) -> None:
    from trainers.bundles.formats import BUNDLE_FORMATS

    for name, (file, *_) in BUNDLE_FORMATS.items():
        if not (bundle / file).exists():
            note(f"the bundle has no {name} file; its README.md says why")


def verify_bundle(
    bundle: Path | str, *, run_code: bool = False, trusted: Path | str | None = None
) -> BundleReport:
    """The results of all checks of the bundle: `good`, `text()`, `as_dict()`. Its code is executed
    only with `run_code`; `trusted` is a public key that must have signed it. Raises StudyError if
    there is none.
    """
    from trainers.bundles.verify import verify

    try:
        key = None if trusted is None else Path(trusted)
        return verify(Path(bundle), run_code=run_code, trusted=key)
    except ValueError as error:
        raise StudyError(str(error)) from None


def _require_complete(record: TrialRecord, records: list[TrialRecord]) -> None:
    """Raises StudyError for a trial whose training in the search was not completed."""
    if record.state != "complete":
        reason = f" ({record.reason})" if record.reason else ""
        raise StudyError(
            f"trial {record.number} is {state_word(record.state)}{reason}; "
            "only complete trials are exported: " + _complete(records)
        )


def _origin(directory: Path, record: TrialRecord, choice: RetrainedChoice | None) -> dict[str, Any]:
    """What a bundle says of where it comes from."""
    return {
        "study": directory.name,
        "trial": record.number,
        "started": record.started,
        "seed": record.attributes["seed"],
        "learning_rate": record.attributes["learning_rate"],
        **({} if choice is None else _retrained_origin(choice)),
    }


def _retrained_origin(choice: RetrainedChoice) -> dict[str, Any]:
    """What tells the bundles of one trial apart."""
    trained_on, epochs = choice.trainings[0].variety
    seeds = [training.seed for training in choice.trainings]
    return {
        "seed": seeds[0] if len(seeds) == 1 else " ".join(map(str, seeds)),
        "retrained": f"{choice.how}; {epochs} epochs on {trained_on}",
    }


def _complete(records: list[TrialRecord]) -> str:
    numbers = [str(r.number) for r in records if r.state == "complete"]
    return (
        f"{', '.join(numbers[:12])}{' ...' if len(numbers) > 12 else ''}"
        if numbers
        else "there is none yet"
    )


def _trained(
    study: Study, record: TrialRecord, directory: Path, origin: dict[str, Any]
) -> TrainedNetwork:
    """The trained network of a trial with its scores. Raises StudyError where one is missing."""
    from trainers.bundles.export import TrainedNetwork

    trial, scores = load_trained(study, record, directory, device="cpu"), record.scores or {}
    if trial.epoch != scores.get("epoch"):
        raise StudyError(
            f"the checkpoint of trial {record.number} is of epoch {trial.epoch}, the reported "
            f"scores of epoch {scores.get('epoch')}: it is torn or of another run "
            f"({directory / TRIALS / f'{record.number:05d}'})"
        )
    return TrainedNetwork(trial.network, trial.splits, trial.config, scores, origin)
