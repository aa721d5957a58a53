"""Trials put together again from what is left of the journal and from their folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from searchspace.recipe import Candidate
from studies.config import Study
from studies.journal.folders import INHERITED, TrialFolder
from studies.journal.reader import OPTUNA_STATES
from studies.journal.records import CREATE_TRIAL, SET_STATE, SET_TRIAL_ATTRIBUTE, Entry
from studies.journal.salvage import LOST_TRIAL
from studies.journal.trial import ENDED, KIND, RUNG, inherited_key, recorded_rungs
from studies.pareto import DIRECTIONS, SCORE_OF

WAITING = 4
CODES = {state: code for code, state in OPTUNA_STATES.items()}
DIRECTION_CODES = {"minimize": 1, "maximize": 2}
NEEDED_ATTRIBUTES = (
    "architecture",
    "canonical",
    "learning_rate",
    "seed",
)  # what each journal says of a trial
# (architecture in text form, learning rate, seed) -> what a journal says of such a trial
DescribeTrial = Callable[[str, float | None, int], dict[str, Any]]


@dataclass
class SalvagedTrial:
    """One trial of the salvaged records."""

    created: int  # place of the record that creates it
    attributes: dict[str, Any] = field(default_factory=dict)
    ended: int | None = None  # place of the record that ends it
    placeholder: bool = False

    @property
    def proposed(self) -> bool:
        """Whether the records say what is trained."""
        return "architecture" in self.attributes


def trials_of(entries: list[Entry]) -> list[SalvagedTrial]:
    """The trials that the records create, by number."""
    trials: list[SalvagedTrial] = []
    for place, entry in enumerate(entries):
        if entry["op_code"] == CREATE_TRIAL:
            trials.append(SalvagedTrial(place, dict(entry.get("user_attrs") or {})))
            trials[-1].placeholder = entry == LOST_TRIAL
            if OPTUNA_STATES[entry.get("state", 0)] in ENDED:
                trials[-1].ended = place
        elif entry["op_code"] in (SET_TRIAL_ATTRIBUTE, SET_STATE):
            trial = trials[entry["trial_id"]]
            if trial.ended is not None:
                continue  # a trial that has ended does not change
            if entry["op_code"] == SET_TRIAL_ATTRIBUTE:
                trial.attributes.update(entry["user_attr"])
            elif OPTUNA_STATES[entry["state"]] in ENDED:
                trial.ended = place
    return trials


def study_entries(study: Study, facts: Mapping[str, Any]) -> list[Entry]:
    """The first records of a journal: the study, and `facts` (channels, classes) about it."""
    directions = [DIRECTION_CODES[DIRECTIONS[name]] for name in study.objectives]
    begin = {"op_code": 0, "study_name": "equisearch", "directions": directions}
    given = {**facts, "objectives": list(study.objectives)}
    return [
        _by_repair(begin),
        *(
            _by_repair({"op_code": 2, "study_id": 0, "user_attr": {name: value}})
            for name, value in given.items()
        ),
    ]


def complete_trial(
    number: int,
    trial: SalvagedTrial,
    folder: TrialFolder,
    study: Study,
    describe: DescribeTrial | None,
) -> tuple[list[Entry], bool]:
    """(records that the journal lacks of trial `number`, whether they end it), from its folder."""
    attributes = dict(trial.attributes)
    if not set(NEEDED_ATTRIBUTES) <= set(attributes):
        attributes = {**describe_folder(folder, study, describe), **attributes}
    ended = trial.ended is not None
    state, rungs, values, broken = _outcome(folder, study, attributes)
    if not ended and state == "running":
        rungs = {}  # it goes on, and reports them itself
    elif not ended and state == "pruned" and _last_decision(attributes) == "continue":
        state, rungs = "running", {}
    recorded = recorded_rungs(trial.attributes)
    attributes.update({f"{RUNG}{e}": rung for e, rung in rungs.items() if e not in recorded})
    if not ended and state != "running":
        attributes.update(broken)
    new = {name: v for name, v in attributes.items() if trial.attributes.get(name, ...) != v}
    records = [
        _by_repair({"op_code": SET_TRIAL_ATTRIBUTE, "trial_id": number, "user_attr": {name: value}})
        for name, value in new.items()
    ]
    if ended or state == "running":
        return records, False
    end = {"op_code": SET_STATE, "trial_id": number, "state": CODES[state], "values": values}
    return [*records, _by_repair({**end, "datetime_complete": _now()})], True


def new_trial(
    folder: TrialFolder | None, study: Study, describe: DescribeTrial | None
) -> tuple[Entry, bool]:
    """(the record of a trial of which only its folder is left, whether it has ended); a refused
    trial where there is no folder either.
    """
    if folder is None or describe is None or not _known(folder, study):
        lost = {"refused": True, "reason": "the journal lost this trial"}
        return _created("failed", lost, None), False
    attributes = describe_folder(folder, study, describe)
    state, rungs, values, broken = _outcome(folder, study, attributes)
    attributes.update({f"{RUNG}{epoch}": rung for epoch, rung in rungs.items()}, **broken)
    if state == "failed":
        attributes["reason"] = folder.error
    return _created(state, attributes, values), state != "running"


def untried(entries: list[Entry], first: Sequence[str]) -> list[Entry]:
    """The records of trials that wait, one for each architecture of `first` that no trial of the
    records trains or waits with.
    """
    held = [trial.attributes for trial in trials_of(entries)]
    texts = {str(given.get(name)) for given in held for name in ("canonical", "enqueued")}
    keys = {Candidate.parse(text).key: text for text in first}
    return [
        _created("running", {"enqueued": text, "in_space": False}, None)
        for key, text in keys.items()
        if not {key, text} & texts
    ]


def describe_folder(
    folder: TrialFolder, study: Study, describe: DescribeTrial | None
) -> dict[str, Any]:
    """What a journal would say of the folder's trial; empty where that is not known.

    Raises ValueError for an architecture that cannot be built.
    """
    if describe is None or not _known(folder, study):
        return {}
    if _is_model(folder):
        return dict(folder.given["beside"])
    rate = folder.given.get("learning_rate")
    if rate is None and study.space.learning_rate is not None:
        rate = folder.rate
    assert folder.architecture is not None
    seed = folder.given.get("seed", study.search.seed)
    continues = folder.given.get("continues")
    inherited = {name: folder.given[name] for name in INHERITED if name in folder.given}
    known = describe(folder.architecture, rate, seed)
    return {
        **({} if continues is None else {"continues": continues}),
        **inherited,
        **(folder.given.get("beside") or {}),
        **known,
        "canonical": inherited_key(known["canonical"], inherited.get("inherited_from")),
    }


def _is_model(folder: TrialFolder) -> bool:
    """Whether it is that of a model from outside, whose attributes are all in it."""
    return (folder.given.get("beside") or {}).get(KIND) == "model"


def _known(folder: TrialFolder, study: Study) -> bool:
    """Whether the folder says all that a trial is: a learning rate that is searched included."""
    if _is_model(folder):
        return True
    return folder.architecture is not None and (
        study.space.learning_rate is None
        or "learning_rate" in folder.given
        or folder.rate is not None
        or bool(folder.scores)
    )


def _outcome(
    folder: TrialFolder, study: Study, attributes: Mapping[str, Any]
) -> tuple[Any, dict[int, dict[str, Any]], list[float] | None, dict[str, Any]]:
    """(state, rungs, values, constraints) of a trial, as its scores tell."""
    last = study.rungs[-1]
    scores = {epoch: row for epoch, row in folder.scores.items() if epoch in study.rungs}
    state = "complete" if last in scores else "pruned" if scores else "running"
    if state == "pruned" and folder.epoch > max(scores):
        state = "running"  # it was on its way to the next rung
    if folder.error is not None and last not in scores:
        state = "failed"
    stopped = max(scores, default=None) if state == "pruned" else None
    rungs = {
        epoch: {"scores": row, "decision": "stop" if epoch == stopped else "continue"}
        for epoch, row in scores.items()
    }
    facts = {**attributes, **scores.get(last, {})}
    if state != "complete":
        return state, rungs, None, {}
    values = [facts.get(SCORE_OF.get(name, name)) for name in study.objectives]
    if not all(type(value) in (int, float) for value in values):
        return "running", {}, None, {}
    excess = {
        name: facts[name] / limit - 1
        for name, limit in study.constraints.limits().items()
        if facts.get(name) is not None
    }
    numbers = [float(value) for value in values if value is not None]
    return state, rungs, numbers, {"constraints": excess} if excess else {}


def _last_decision(attributes: Mapping[str, Any]) -> str | None:
    rungs = recorded_rungs(attributes)
    return rungs[max(rungs)]["decision"] if rungs else "continue"


def _created(state: Any, attributes: dict[str, Any], values: list[float] | None) -> Entry:
    finished = {} if state == "running" else {"datetime_complete": _now()}
    return _by_repair(
        {
            "op_code": CREATE_TRIAL,
            "study_id": 0,
            "datetime_start": _now(),
            **finished,
            "state": WAITING if state == "running" else CODES[state],
            "value": None,
            "values": values,
            "distributions": {},
            "params": {},
            "user_attrs": attributes,
            "system_attrs": {},
            "intermediate_values": {},
        }
    )


def _by_repair(entry: Entry) -> Entry:
    return {"op_code": entry["op_code"], "worker_id": "repair", **entry}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()
