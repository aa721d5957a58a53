"""The study file: one YAML file is the whole experiment, validated into the immutable `Study`.

`load` reads a file or a preset; every problem becomes one `StudyFileError` that names file, line
and key, what was given, and what is allowed. Nothing here imports torch, optuna or ray.
"""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from searchspace.choices import Interval
from searchspace.recipe import Recipe
from searchspace.space import SearchSpace
from studies.errors import StudyFileError
from studies.pareto import Objective
from studies.yaml_loader import StudyLoader, line_of
from trainers.settings import Data, Settings, Symmetry, Training
from trainers.training.config import TrainingConfig

PRESETS = Path(__file__).parent / "presets"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """Seconds from a number or from text such as `90s`, `30m`, `2h`, `1d`."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value)
        if not match:
            raise ValueError(
                f"'{value}' is not a duration; write seconds, or a number with s, m, h or d such "
                "as 90m"
            )
        return float(match[1]) * UNITS[match[2] or "s"]
    return value


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"objectives are {', '.join(names)}; each may be named once")
    return names


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


def _architectures(value: Any) -> Any:
    """Architectures in text form, each checked and spelled canonically."""
    from searchspace.recipe import Candidate

    texts = value if isinstance(value, (list, tuple)) else [value]
    return tuple(str(Candidate.parse(str(text))) for text in texts)


class Constraints(Settings):
    """Upper bounds. What surely breaks one is refused before it trains; what breaks one afterwards
    is never on the front.
    """

    params: int | None = Field(default=None, ge=1)
    macs: int | None = Field(default=None, ge=1)  # multiply-accumulates per image
    latency: float | None = Field(default=None, gt=0)  # milliseconds per image
    memory: float | None = Field(default=None, gt=0)  # megabytes, the peak of the training

    def limits(self) -> dict[str, float]:
        """The bounds that are set, by name."""
        return {name: value for name, value in self if value is not None}


class Search(Settings):
    """How architectures are proposed, compared and stopped."""

    sampler: Literal[
        "ehvi", "evolution", "tpe", "nsga2", "nsga3", "gp", "random", "grid", "qmc"
    ] = "ehvi"
    # that end: completed, stopped at a rung, or failed
    trials: int = Field(default=60, ge=1)
    # epochs at which trials are compared; those before the last epoch count
    rungs: tuple[Annotated[int, Field(ge=1)], ...] = (2, 6)
    # about 1/eta of the trials go on at each rung
    eta: float = Field(default=2, gt=1)
    # a stopped trial goes on, as a new one, when it would be kept among those that came later
    second_chances: bool = True
    seed: int = Field(default=0, ge=0)
    # tried before anything is proposed: known ones, controls
    first: Annotated[tuple[str, ...], BeforeValidator(_architectures)] = ()
    # proposals before the sampler learns; None: the sampler's usual number
    startup: int | None = Field(default=None, ge=0)
    # those are spread over degrees of equivariance, or random
    start: Literal["spread", "random"] = "spread"
    # trainings of one architecture, each with its own seed; 1: none is repeated
    repeats: int = Field(default=2, ge=1)
    # continuations of a trial whose worker died twice at the same rung
    retries: int = Field(default=3, ge=0)
    # stop when the front has not moved for that many trials
    patience: int | None = Field(default=None, ge=1)
    timeout: Seconds | None = None  # stop after that long; `resume` goes on

    @model_validator(mode="after")
    def _increasing(self) -> Search:
        if any(a >= b for a, b in zip(self.rungs, self.rungs[1:])):
            raise ValueError(
                f"rungs are {list(self.rungs)}; they must increase, for example [2, 6, 18]"
            )
        return self


def _gpus(value: Any) -> Any:
    """`auto` or a number; said in one sentence, where a union would name its first part only."""
    if value == "auto" or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    ):
        return value
    raise ValueError(
        f"got {value!r}; it must be auto, 0, a share of one GPU such as 0.25, or a number of GPUs"
    )


class Resources(Settings):
    """Where and on what trials run."""

    # auto: in process for one worker without an address, else Ray
    executor: Literal["auto", "in_process", "ray"] = "auto"
    # trials at the same time; auto: as many as fit
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    cpus_per_trial: float = Field(default=1, ge=0)
    # GPUs, may be a fraction; 0: trials train on CPUs; auto: where there are GPUs, as much as
    # lets every core train, an eighth at least
    gpus_per_trial: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0)], BeforeValidator(_gpus)
    ] = "auto"
    # GB; with `workers: auto` no machine gets more trials than its memory holds
    memory_per_trial: float = Field(default=1.2, ge=0)
    custom: dict[str, float] = {}  # custom Ray resources of a trial
    # of a Ray cluster; None: RAY_ADDRESS, or Ray on this machine alone
    address: str | None = None
    # Ray's, for clusters whose nodes lack the package
    runtime_env: dict[str, Any] = {}
    # a worker silent for that long (no epoch finished) is replaced; None: on Ray 20 times the
    # longest epoch so far, 10 minutes at least, and no limit in process
    trial_timeout: Seconds | None = None

    @model_validator(mode="after")
    def _whole_gpus(self) -> Resources:
        if (
            self.gpus_per_trial != "auto"
            and self.gpus_per_trial > 1
            and self.gpus_per_trial != int(self.gpus_per_trial)
        ):
            raise ValueError(
                f"gpus_per_trial is {self.gpus_per_trial:g}; a trial takes a share of one GPU, "
                "up to 1, or whole GPUs"
            )
        return self


class Loggers(Settings):
    """Ray Tune's loggers, on top of the study's own records."""

    tensorboard: bool = False  # under DIR/tensorboard
    # arguments of ray.air.integrations.mlflow.MLflowLoggerCallback
    mlflow: dict[str, Any] | None = None
    # arguments of ray.air.integrations.wandb.WandbLoggerCallback
    wandb: dict[str, Any] | None = None


class Study(Settings):
    """One experiment: data, training, symmetry, the space, what is compared, how it is searched,
    and on what it runs.
    """

    data: Data
    training: Training = Training()
    symmetry: Symmetry = Symmetry()
    space: SearchSpace = SearchSpace()
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1), AfterValidator(_distinct)] = (
        "accuracy",
        "symmetry_accuracy",
    )
    constraints: Constraints = Constraints()
    search: Search = Search()
    resources: Resources = Resources()
    loggers: Loggers = Loggers()

    @property
    def trial_training(self) -> Training:
        """The training as trials run it: on the CPU where they get no GPU and the device is
        left open.
        """
        on_cpu = self.training.device == "auto" and self.resources.gpus_per_trial == 0
        return self.training.model_copy(update={"device": "cpu"}) if on_cpu else self.training

    def training_config(
        self,
        seed: int,
        recipe: Recipe | None = None,
        batch_divisor: int = 1,
        *,
        device: str | None = None,
    ) -> TrainingConfig:
        """How one training of this study runs, under a candidate's recipe; `device` replaces the
        study's.
        """
        training = self.trial_training
        if device is not None:
            training = training.model_copy(update={"device": device})
        return TrainingConfig(
            self.data, training, self.symmetry, seed, recipe or Recipe(), batch_divisor
        )

    @model_validator(mode="after")
    def _enumerable(self) -> Study:
        ranges = {
            "learning_rate": self.space.learning_rate,
            "equivariance_loss.weight": self.space.equivariance_loss.weight,
        }
        for name, choice in ranges.items():
            unused = name != "learning_rate" and set(self.space.equivariance_loss.kind) == {"none"}
            if (
                self.search.sampler == "grid"
                and isinstance(choice, Interval)
                and choice.low < choice.high
                and not unused
            ):
                raise ValueError(
                    f"the grid sampler tries every choice, but space.{name} is a range "
                    f"({choice.low:g} to {choice.high:g}); "
                    "fix it to one number, or take another sampler"
                )
        return self

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs at which a trial reports: the rungs below the number of epochs, and the last
        epoch.
        """
        return tuple(r for r in self.search.rungs if r < self.training.epochs) + (
            self.training.epochs,
        )


def presets() -> dict[str, Path]:
    """The built-in studies: their names and files."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def load(source: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Study:
    """The validated study of a file or of a preset's name.

    `overrides` are dotted keys such as `{"search.trials": 5}`; None values are left out. Relative
    data paths are taken from the working directory, or else from the file's own folder, and become
    absolute. Raises StudyFileError.
    """
    path = Path(source)
    if not path.is_file():
        known = presets()
        if str(source) not in known:
            raise StudyFileError(
                f"there is no study file '{source}' and no preset of that name; "
                f"presets are {', '.join(known) or 'not installed'}"
            )
        path = known[str(source)]
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StudyFileError(
            f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start}); "
            "a study file is YAML"
        ) from None
    return parse(text, name=str(path), beside=path.parent, overrides=overrides)


def parse(
    text: str,
    *,
    name: str = "study",
    beside: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Study:
    """The validated study in a YAML text; `name` stands in messages. Raises StudyFileError.

    With `beside`, the folder of the text's file, data paths become absolute; without, they stay as
    they are.
    """
    try:
        content = yaml.load(text, Loader=StudyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise StudyFileError(
            f"{name}{place}: this is not valid YAML: {getattr(error, 'problem', None) or error}"
        ) from None
    if not isinstance(content, dict):
        raise StudyFileError(
            f"{name}: a study file is a mapping with the keys {', '.join(Study.model_fields)}; "
            f"{'it is empty' if content is None else f'this is a {type(content).__name__}'}"
        )
    for key, value in (overrides or {}).items():
        if value is not None:
            _override(content, key, value, name)
    if beside is not None and isinstance(content.get("data"), dict):
        _make_absolute(content["data"], beside)
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise StudyFileError(
            explain(
                error,
                text,
                name,
                [key for key, value in (overrides or {}).items() if value is not None],
            )
        ) from None


def _override(content: dict, key: str, value: Any, name: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if content.get(section) is None:
            content[section] = {}
        content = content[section]
        if not isinstance(content, dict):
            raise StudyFileError(f"{name}: '{section}' must be a mapping to set '{key}'")
    content[last] = value


def _make_absolute(data: dict[str, Any], beside: Path) -> None:
    """Workers may run elsewhere, and a study be resumed from elsewhere: their data must not depend
    on the working directory.
    """
    if "name" in data:
        data.setdefault("root", "data")
    for key in ("root", "folder"):
        if isinstance(data.get(key), str):
            path = Path(data[key]).expanduser()
            data[key] = str(
                (
                    beside / path if not path.exists() and (beside / path).exists() else path
                ).resolve()
            )


def dump(study: Study) -> str:
    """The study as YAML with every value written out; `parse` gives the same study back."""
    return yaml.safe_dump(
        study.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of a study file, for editors."""
    return Study.model_json_schema()


def differences(old: Study, new: Study) -> list[str]:
    """What differs between two studies, one `key: old -> new` each."""
    a, b = (_flat(study.model_dump(mode="json")) for study in (old, new))
    return [
        f"{key}: {a.get(key, 'absent')} -> {b.get(key, 'absent')}"
        for key in dict.fromkeys([*a, *b])
        if a.get(key) != b.get(key)
    ]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, inner in value.items()
            for k, v in _flat(inner, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value}


def explain(error: ValidationError, text: str, name: str, overridden: Sequence[str] = ()) -> str:
    """One line per mistake: file, line, key, what was given and what is allowed; keys that were set over
    the file have no line in it.
    """
    lines = {}
    for problem in error.errors(include_url=False):
        path = _keys(problem["loc"])
        key, line = ".".join(map(str, path)), line_of(text, path)
        if any(f"{key}.".startswith(f"{given}.") for given in overridden):
            place = f"{key}, set over {name}"
        else:
            place = f"{name}{f', line {line}' if line else ''}" + (f", {key}" if key else "")
        lines.setdefault(place, _complaint(problem, path))
    return "\n".join(f"{place}: {complaint}" for place, complaint in lines.items())


def _keys(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The path of keys in the file: pydantic also names the members of unions and validators, which
    are no keys.
    """
    keys: list[int | str] = []
    model: Any = Study
    for part in loc:
        fields = _fields(model)
        if (
            fields is not None
            and part not in fields
            and (re.search(r"[\[\]()\-]", str(part)) or part in _member_names(model))
        ):
            continue
        if fields is None and isinstance(part, str) and not _is_mapping(model):
            continue
        keys.append(part)
        model = fields[part].annotation if fields and part in fields else _inner(model)
    return tuple(keys)


def _members(model: Any) -> list[Any]:
    """The types inside unions and annotations, flattened."""
    if typing.get_origin(model) is Annotated:
        return _members(typing.get_args(model)[0])
    if typing.get_origin(model) in (Union, type(int | str)):
        return [member for argument in typing.get_args(model) for member in _members(argument)]
    return [model]


def _models(model: Any) -> list[type[BaseModel]]:
    return [m for m in _members(model) if isinstance(m, type) and issubclass(m, BaseModel)]


def _member_names(model: Any) -> set[str]:
    return {m.__name__ for m in _models(model)}


def _fields(model: Any) -> dict[str, Any] | None:
    models = _models(model)
    return (
        {name: field for m in models for name, field in m.model_fields.items()} if models else None
    )


def _is_mapping(model: Any) -> bool:
    return any(m is dict or typing.get_origin(m) is dict for m in _members(model))


def _inner(model: Any) -> Any:
    """The type of the members of a list, tuple or mapping."""
    for member in _members(model):
        arguments = [a for a in typing.get_args(member) if a is not Ellipsis]
        if arguments and typing.get_origin(member) is not Literal:
            return arguments[-1]
    return Any


def _complaint(problem: Mapping[str, Any], path: tuple[int | str, ...]) -> str:
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        allowed = list(_allowed(path[:-1]))
        close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        return (
            f"unknown key '{path[-1]}'"
            + (f" (did you mean '{close[0]}'?)" if close else "")
            + f"; allowed are {', '.join(allowed)}"
        )
    if kind == "missing":
        return "this key is missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        return message
    given = (
        repr(value)
        if not isinstance(value, (dict, list))
        else f"a {'mapping' if isinstance(value, dict) else 'list'}"
    )
    return f"got {given}; {message[0].lower()}{message[1:]}"


def _allowed(path: tuple[int | str, ...]) -> tuple[str, ...]:
    model: Any = Study
    for part in path:
        fields = _fields(model)
        model = fields[part].annotation if fields and part in fields else _inner(model)
    return tuple(_fields(model) or ())
