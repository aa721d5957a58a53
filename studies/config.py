"""The study file: one YAML file is the whole experiment, validated into the immutable `Study`.

`load` reads a file or a preset; every problem becomes one `StudyFileError` that names file, line
and key, what was given, and what is allowed. Nothing here imports torch, optuna or ray.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from searchspace.choices import Interval
from searchspace.recipe import Recipe
from searchspace.space import SearchSpace
from studies.complaints import booleans, explain, place_of, visible
from studies.durations import Seconds
from studies.errors import StudyFileError
from studies.pareto import Objective
from studies.yaml_loader import YamlError, read_yaml, write_yaml
from trainers.settings import Data, Settings, Symmetry, Training

if TYPE_CHECKING:
    from trainers.training.config import TrainingConfig

PRESETS = Path(__file__).parent / "presets"
NULL = object()  # among overrides: sets a key to null, where None leaves it as it is


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"objectives are {', '.join(names)}; each may be named once")
    if set(names) <= {"params", "macs", "latency"}:
        raise ValueError(
            f"objectives are {', '.join(names)}, which are costs: the smallest network wins; add "
            "what is to be good, such as accuracy"
        )
    return names


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
    # megabytes of a GPU, the peak of the training
    memory: float | None = Field(default=None, gt=0)

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
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
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
        from trainers.training.config import TrainingConfig

        training = self.trial_training
        if device is not None:
            training = training.model_copy(update={"device": device})
        return TrainingConfig(
            self.data, training, self.symmetry, seed, recipe or Recipe(), batch_divisor
        )

    @model_validator(mode="after")
    def _measured(self) -> Study:
        if self.constraints.memory is not None and self.trial_training.device == "cpu":
            raise ValueError(
                "constraints.memory limits the memory of a GPU, and the trials train on CPUs; "
                "leave it out, or limit params or macs"
            )
        return self

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
    study = parse(text, name=str(path), beside=path.parent, overrides=overrides)
    _require_a_rung(study, str(path), overrides or {})
    return study


def _require_a_rung(study: Study, name: str, overrides: Mapping[str, Any]) -> None:
    """Raises StudyFileError for rungs that no trial reaches; fewer epochs than the file says may be
    set over it.
    """
    shortened = overrides.get("training.epochs") is not None and "search.rungs" not in overrides
    given, epochs = study.search.rungs, study.training.epochs
    if "rungs" in study.search.model_fields_set and given and not shortened and min(given) > epochs:
        raise StudyFileError(
            f"{name}, search.rungs: rungs are at epochs {', '.join(map(str, given))}, and a "
            f"training has {epochs}; choose one below {epochs}, or [] to compare at the end only"
        )


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
        content = read_yaml(text)
    except YamlError as error:
        place = f", line {error.line}" if error.line else ""
        raise StudyFileError(f"{name}{place}: this is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise StudyFileError(
            f"{name}: a study file is a mapping with the keys {', '.join(Study.model_fields)}; "
            f"{'it is empty' if content is None else f'this is a {type(content).__name__}'}"
        )
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    for key, value in given.items():
        _override(content, key, None if value is NULL else value, name)
    if beside is not None and isinstance(content.get("data"), dict):
        _make_absolute(content["data"], beside)
    wrong = [
        f"{visible(place_of(path, text, name, list(given)))}: got true or false; "
        "it must be a number or text"
        for path in booleans(Study, content)
    ]
    if wrong:
        raise StudyFileError("\n".join(wrong))
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise StudyFileError(explain(error, Study, text, name, list(given))) from None
    except (RecursionError, OverflowError):
        raise StudyFileError(
            f"{name}: a number is too large, or values are nested too deeply"
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
    return write_yaml(study.model_dump(mode="json"))


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
