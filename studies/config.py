"""The study file: one YAML file is the whole experiment, validated into the immutable `Study`.

`load_study` reads a file or a preset; every problem becomes one `StudyFileError` that names file,
line and key, what was given, and what is allowed. Nothing here imports torch, optuna or ray.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from searchspace.choices import Interval
from searchspace.groups import Group
from searchspace.recipe import Recipe
from searchspace.space import SearchSpace
from searchspace.training.augmentation import Augmentation
from searchspace.weights.governor import Governor
from studies.complaints import booleans, explain, place_of, visible
from studies.errors import StudyFileError
from studies.pareto import Objective
from studies.sections import Constraints, Loggers, Resources, Search
from studies.yaml_loader import YamlError, read_yaml, write_yaml
from trainers.files import as_word, require_local
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
    # auto: controls of the front's best are trained when the search has ended
    controls: Literal["auto", "none"] = "none"
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
    def _once(self, info: ValidationInfo) -> Study:
        if not (info.context or {}).get("reading"):
            declared = Group.parse(self.symmetry.group)
            self.space.equivariance_loss.require_once(declared)
            self.space.equivariance_loss.check_elements(declared)
            for text in (*(self.space.augment or ()), str(self.training.augment.rotation)):
                if text == "group":
                    Augmentation.parse(text).check(declared)
        return self

    @model_validator(mode="after")
    def _trainable(self) -> Study:
        if self.data.folds is not None and self.search.inherit:
            raise ValueError(
                "search.inherit is true and data.folds is set: weights are inherited by one "
                "network, and with folds a trial has several; leave one of the two out"
            )
        for text in self.space.gamma:
            Governor.parse(text).check_epochs(self.training.epochs)
        return self

    @model_validator(mode="after")
    def _enumerable(self) -> Study:
        ranges = {
            "learning_rate": self.space.learning_rate,
            "equivariance_loss.weight": self.space.equivariance_loss.weight,
            "dropout.rate": self.space.dropout.rate,
        }
        for name, choice in ranges.items():
            kinds = getattr(getattr(self.space, name.split(".")[0]), "kind", ())
            unused = set(kinds) == {"none"}
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


def read_text(path: Path, what: str) -> str:
    """The text in a file; `what` it must hold is said where it is not UTF-8. Raises
    StudyFileError, or OSError.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StudyFileError(
            f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start}); {what}"
        ) from None


def load_study(source: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Study:
    """The validated study of a file or of a preset's name.

    `overrides` are dotted keys such as `{"search.trials": 5}`; None values are left out. Relative
    data paths are taken from the working directory, or else from the file's own folder, and become
    absolute. Raises StudyFileError.
    """
    path = Path(source)
    if not path.is_file():
        try:
            require_local(source)
        except ValueError as error:
            raise StudyFileError(str(error)) from None
        names = presets()
        if str(source) not in names:
            raise StudyFileError(_not_a_file(path, names))
        path = names[str(source)]
    text = read_text(path, "a study file is YAML")
    study = parse(text, name=str(path), beside=path.parent, overrides=overrides)
    _require_reached(study, str(path), overrides or {})
    return study


def _not_a_file(path: Path, names: Collection[str]) -> str:
    """What to give in place of a path that is neither a study file nor one of the presets."""
    if (path / "study.yaml").is_file():
        return f"{path} is a study's directory; its study file is {as_word(path / 'study.yaml')}"
    if path.is_dir():
        return (
            f"{path} is a folder, and a study is a file, which names the data; "
            "`equisearch presets folder` prints one for a folder of images (data: {folder: ...})"
        )
    return (
        f"there is no study file '{path}' and no preset of that name; presets are "
        f"{', '.join(names) or 'not installed'}"
    )


def _require_reached(study: Study, name: str, overrides: Mapping[str, Any]) -> None:
    """Raises StudyFileError for rungs that no trial reaches. Those of a file may lie beyond the
    epochs that are set over it, and the usual rungs, as a study's directory names them, beyond
    fewer.
    """
    given, epochs = study.search.rungs, study.training.epochs
    shortened = overrides.get("training.epochs") is not None and "search.rungs" not in overrides
    if "rungs" not in study.search.model_fields_set or shortened or not given:
        return
    if min(given) > epochs or (max(given) > epochs and given != Search().rungs):
        raise StudyFileError(
            f"{name}, search.rungs: rungs are at epochs {', '.join(map(str, given))}, and a "
            f"training has {epochs}; leave out what is beyond {epochs}, and take [] to compare "
            "at the end only"
        )


def parse(
    text: str,
    *,
    name: str = "study",
    beside: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    reading: bool = False,
) -> Study:
    """The validated study in a YAML text; `name` stands in messages. Raises StudyFileError.

    With `beside`, the folder of the text's file, data paths become absolute; without, they stay as
    they are. `reading`: what was searched is only looked at, so whether networks can have the
    width that the space asks for is not tried.
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
        return Study.model_validate(content, context={"reading": reading})
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
    for key in ("root", "folder", "files"):
        if isinstance(data.get(key), str):
            try:
                require_local(data[key])
            except ValueError as error:
                raise StudyFileError(f"data.{key}: {error}") from None
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
