"""Every proposal of a study, derived again from its journal: what the sampler saw, and its seed,
decide what it proposes, however many workers trained and whatever was killed.

The journal holds with each proposal how many records led to the state that the sampler saw
(`studies.journal.storage.SearchStorage.one_view`). That many are read again, and a sampler made as
the driver made it is asked again.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from searchspace.groups import Group
from studies.config import Study
from studies.errors import DamagedError
from studies.journal.directory import read_study
from studies.journal.origin import require_begun
from studies.journal.reader import JOURNAL
from studies.journal.storage import NAME, SearchStorage, View, is_readable_by_optuna, next_place
from studies.journal.trial import SAW, inherited_key
from studies.samplers.factory import make_sampler, version_of
from trainers.files import as_word


@dataclass(frozen=True)
class Rederived:
    """How many proposals of a study follow from its journal."""

    proposals: int  # that the sampler made
    again: int  # derived again, before the first that was not
    given: int  # not the sampler's: enqueued, inherited or continued
    unrecorded: int  # made by a version that did not note what its sampler saw
    trial: int | None = None  # the first that was not derived again
    reason: str | None = None  # why, in a sentence

    def lines(self) -> list[str]:
        """All of it in sentences."""
        share = f" ({100 * self.again / self.proposals:.0f} %)" if self.proposals else ""
        said = [
            f"{self.again} of {self.proposals} proposals of the sampler were derived again{share}; "
            f"given, inherited or continued were {self.given} trials, which are not the sampler's"
        ]
        if self.unrecorded:
            said.append(
                f"{self.unrecorded} proposals were made by a version that did not note what its "
                "sampler saw, and cannot be derived again; those of studies that begin now can"
            )
        if self.trial is not None:
            said.append(
                f"trial {self.trial} is the first that was not: {self.reason}; the journal or the "
                "study file was edited, or code, libraries or processor differ (versions.json)"
            )
        return said


def rederive(directory: Path) -> Rederived:
    """Derives every proposal of the study in `directory` again, until the first that comes out
    otherwise. Raises StudyError without a journal, DamagedError for one that optuna cannot read.
    """
    study = read_study(directory)
    sizes = require_begun(directory)
    lines = (directory / JOURNAL).read_bytes().splitlines()
    records = [json.loads(line) for line in lines if is_readable_by_optuna(line)]
    try:
        with _Prefix(records).after(len(records)) as view:
            trials = view.trials
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{directory / JOURNAL} holds records that optuna cannot read ({error!r}); `equisearch "
            f"repair {as_word(directory)}` keeps the others"
        ) from error
    made = [trial for trial in trials if _is_sampled(trial)]
    noted = sorted(
        (t for t in made if SAW in t.user_attrs), key=lambda t: t.user_attrs[SAW]["records"]
    )
    done = Rederived(len(made), 0, len(trials) - len(made), len(made) - len(noted))
    prefix, size = _Prefix(records), (sizes.get("channels", 1), sizes.get("classes", 10))
    for again, trial in enumerate(noted):
        if (reason := _difference(study, size, prefix, trial)) is not None:
            return Rederived(
                done.proposals, again, done.given, done.unrecorded, trial.number, reason
            )
    return Rederived(done.proposals, len(noted), done.given, done.unrecorded)


def _is_sampled(trial: FrozenTrial) -> bool:
    """Whether the sampler proposed the trial's parameters."""
    given = ("enqueued", "continues", "warm_start", "inherited_from")
    waits = trial.state == TrialState.WAITING and "architecture" not in trial.user_attrs
    return not waits and not any(name in trial.user_attrs for name in given)


def _difference(
    study: Study, size: tuple[int, int], prefix: _Prefix, trial: FrozenTrial
) -> str | None:
    """What comes out otherwise when `trial` is proposed again; None if nothing does."""
    saw = trial.user_attrs[SAW]
    search = study.search.model_copy(update={"trials": saw.get("trials", study.search.trials)})
    after, key = saw.get("after"), None
    version = saw.get("version", 1)  # noted since there is a second one
    if version > (version_of(study) or version):
        return f"version {version} of the sampler proposed it, which this program does not have"
    declared = Group.parse(study.symmetry.group)
    with prefix.after(saw["records"]) as view, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna's, of samplers that are experimental
        if after is not None and not any(t.number == after for t in view.trials):
            return f"it was proposed after trial {after} was refused, which the journal lacks"
        changed = study.model_copy(update={"search": search})
        sampler = make_sampler(changed, next_place(view.trials), after, version)
        asked = _Asked(prefix.study, sampler, trial)
        asked.begin(view)
        with suppress(ValueError):  # what cannot be built was proposed all the same, and refused
            channels, classes = size
            key = study.space.sample(
                asked, channels=channels, classes=classes, declared=declared
            ).key
    for name in dict.fromkeys([*trial.params, *asked.params]):
        before, again = trial.params.get(name), asked.params.get(name)
        if before != again:
            return f"its {name} is {before}, and comes out as {again}"
    written = trial.user_attrs.get("canonical")
    if written is not None and key is not None and inherited_key(key, None) != written:
        return f"its choices come out the same, but mean {key} in place of {written}"
    return None


class _Prefix(BaseJournalBackend):
    """The first records of a journal, as a study that cannot be written to."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._records, self._end = records, 0
        self._storage: SearchStorage | None = None
        self.handed_out = 0  # as of `SingleWriterJournal`

    @contextmanager
    def after(self, records: int) -> Iterator[View]:
        """The trials after that many records, which must not become fewer; samplers see them until
        the end of the block.
        """
        self._end = records
        study = self._opened.get_study_id_from_name(NAME)
        with self._opened.one_view(study) as view:
            view.trials[:] = self._opened.get_all_trials(study, deepcopy=False)
            yield view

    @property
    def study(self) -> optuna.Study:
        """The study after the records that `after` was asked for."""
        return optuna.load_study(study_name=NAME, storage=self._opened)

    @property
    def _opened(self) -> SearchStorage:
        if self._storage is None:
            self._storage = SearchStorage(self)
        return self._storage

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from that one on."""
        yield from (dict(record) for record in self._records[log_number_from : self._end])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Nothing: what a sampler notes is among the records already."""


class _Asked:
    """A trial that is not in the study, asked as optuna asks one that is."""

    def __init__(
        self, study: optuna.Study, sampler: optuna.samplers.BaseSampler, trial: FrozenTrial
    ) -> None:
        self._study, self._sampler = study, sampler
        self._trial = FrozenTrial(
            number=trial.number,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=trial.datetime_start,
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=trial._trial_id,
        )
        self.user_attrs: dict[str, Any] = {}
        self._relative: dict[str, Any] = {}
        self._space: dict[str, BaseDistribution] = {}

    @property
    def params(self) -> dict[str, Any]:
        """What was asked so far."""
        return self._trial.params

    def begin(self, view: View) -> None:
        """Enters the trial into `view`, and asks for what the sampler decides jointly."""
        number = self._trial.number
        view.trials[:] = [*(t for t in view.trials if t.number != number), self._trial]
        self._study.sampler = self._sampler
        self._sampler.before_trial(self._study, self._trial)
        self._space = self._sampler.infer_relative_search_space(self._study, self._trial)
        self._relative = self._sampler.sample_relative(self._study, self._trial, self._space)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """See optuna."""
        return self._suggest(name, CategoricalDistribution(tuple(choices)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """See optuna."""
        return int(self._suggest(name, IntDistribution(low, high, step=step)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """See optuna."""
        return self._suggest(name, FloatDistribution(low, high, log=log))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._trial.params:
            return self._trial.params[name]
        value = self._relative.get(name)
        if distribution.single():
            value = distribution.to_external_repr(
                distribution.to_internal_repr(_only(distribution))
            )
        elif name not in self._relative or not distribution._contains(
            distribution.to_internal_repr(value)
        ):
            value = self._sampler.sample_independent(self._study, self._trial, name, distribution)
        self._trial.distributions = {**self._trial.distributions, name: distribution}
        self._trial.params = {**self._trial.params, name: value}
        return value


def _only(distribution: BaseDistribution) -> Any:
    """The one value of a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return distribution.low
