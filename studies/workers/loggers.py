"""Ray Tune's loggers on a study of ours: TensorBoard, MLflow and Weights & Biases, switched on in
the study file.

The loggers are Ray's own callbacks (`ray.tune.logger`, `ray.air.integrations`); they are told of
trials as Tune would tell them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.errors import StudyError
from studies.search.driver import SearchDriver
from studies.workers.executors import Event


@dataclass(eq=False)
class LoggedTrial:
    """What Tune's loggers read of a trial."""

    trial_id: str
    config: dict[str, Any]
    local_path: str
    experiment_dir_name: str
    checkpoint: None = None

    @property
    def evaluated_params(self) -> dict[str, Any]:
        """The same as `config`."""
        return self.config

    def init_local_path(self) -> None:
        """Creates the folder that a logger may write to."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return f"trial_{self.trial_id}"


class TuneLoggers:
    """A listener that passes a study's events on to the loggers that its file switches on.

    TensorBoard's files go to `tensorboard/00017/` in the study's directory. Raises StudyError if a
    logger's package is missing.
    """

    def __init__(self, driver: SearchDriver) -> None:
        self._driver = driver
        self._trials: dict[int, LoggedTrial] = {}
        self._callbacks = [_made(name, make) for name, make in _wanted(driver).items()]

    def __call__(self, event: Event) -> None:
        """Logs the start of a trial, the scores at a rung, or its end."""
        if event.kind == "started":
            self._trials[event.number] = self._trial(event.number)
            for callback in self._callbacks:
                callback.log_trial_start(self._trials[event.number])
        elif event.kind == "rung" and event.scores is not None:
            numbers = {
                name: value
                for name, value in event.scores.items()
                if isinstance(value, (int, float))
            }
            for callback in self._callbacks:
                callback.log_trial_result(
                    event.epoch,
                    self._trials[event.number],
                    {**numbers, "training_iteration": event.epoch},
                )
        elif event.kind == "ended":
            trial = self._trials.pop(event.number)
            for callback in self._callbacks:
                callback.log_trial_end(trial, failed=event.outcome == "failed")

    def _trial(self, number: int) -> LoggedTrial:
        attributes = self._driver.trial(number).attributes
        config = {
            name: value
            for name, value in attributes.items()
            if isinstance(value, (str, bool, int, float)) and name != "canonical"
        }
        directory, asked = self._driver.directory, self._driver.study.loggers
        trial = LoggedTrial(
            f"{number:05d}",
            config,
            str(directory / ("tensorboard" if asked.tensorboard else "wandb") / f"{number:05d}"),
            directory.name,
        )
        if asked.wandb is not None:
            trial.init_local_path()  # its actor goes there without looking
        return trial

    def close(self) -> None:
        """Ends the loggers."""
        for trial in self._trials.values():
            for callback in self._callbacks:
                callback.log_trial_end(trial, failed=False)
        for callback in self._callbacks:
            callback.on_experiment_end([])


def _wanted(driver: SearchDriver) -> dict[str, Callable[[], Any]]:
    asked = driver.study.loggers
    wanted: dict[str, Callable[[], Any]] = {}
    if asked.tensorboard:
        wanted["tensorboard"] = _tensorboard
    if asked.mlflow is not None:
        wanted["mlflow"] = lambda: _mlflow(asked.mlflow or {})
    if asked.wandb is not None:
        wanted["wandb"] = lambda: _wandb(asked.wandb or {})
    return wanted


def _made(name: str, make: Callable[[], Any]) -> Any:
    """The callback, set up. Raises StudyError if its package is missing or it refuses its
    arguments.
    """
    try:
        callback = make()
        callback.setup()
        return callback
    except StudyError:
        raise
    except (ImportError, RuntimeError) as error:
        package = {"tensorboard": "tensorboardX"}.get(name, name)
        raise StudyError(
            f"loggers.{name} needs the package {package} ({error}); install it (`pip install "
            "'equisearch[loggers]'` installs all), "
            f"or switch that logger off"
        ) from error
    except Exception as error:  # of whatever kind the logger's library raises
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise StudyError(f"loggers.{name} cannot be set up: {said[0]}") from error


def _tensorboard() -> Any:
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()


def _mlflow(arguments: dict[str, Any]) -> Any:
    # an optional package, imported here since the callback would miss it only at the first trial
    import mlflow  # noqa: F401  # pyright: ignore[reportMissingImports]
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return MLflowLoggerCallback(**arguments)


def _wandb(arguments: dict[str, Any]) -> Any:
    import ray
    import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]  # optional

    if not ray.is_initialized():
        raise StudyError("loggers.wandb logs through Ray actors; set resources: {executor: ray}")
    if arguments.get("mode") in ("offline", "disabled"):
        # the callback asks for a key unless it finds this
        os.environ["WANDB_MODE"] = arguments["mode"]
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(**arguments)
