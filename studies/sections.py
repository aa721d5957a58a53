"""Sections of a study file that say how it is searched, on what, and what is recorded:
`constraints`, `search`, `resources` and `loggers`, as immutable values. Those of data and training
are in `trainers.settings`, the space in `searchspace.space`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from searchspace.geometry import counted
from studies.durations import Seconds
from trainers.settings import Settings


def _architectures(value: Any) -> Any:
    """Architectures in text form, each checked and spelled canonically."""
    from searchspace.recipe import Candidate

    texts = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(text, dict) for text in texts):
        raise ValueError(
            "got a mapping, as YAML takes a text with a colon; put each architecture in quotes, "
            "such as '28px: 10k3@C4, 10k3 max2/2'"
        )
    return tuple(str(Candidate.parse(str(text))) for text in texts)


class Constraints(Settings):
    """Upper bounds. What surely breaks one is refused before it trains; what breaks one afterwards
    is never on the front.
    """

    params: int | None = Field(default=None, ge=1)
    macs: int | None = Field(default=None, ge=1)  # multiply-accumulates per image
    latency: float | None = Field(default=None, ge=1e-9)  # milliseconds per image
    # megabytes of a GPU, the peak of the training
    memory: float | None = Field(default=None, ge=1e-9)

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
    # no trial stops whose scores differ by chance, at this confidence, from those that go on: 0.95
    # for few validation images; None compares the scores as they are
    confidence: float | None = Field(default=None, gt=0, lt=1)
    # optimizer steps before the first rung, at least: where images are few, `start` multiplies
    # epochs and rungs; None: as they are
    least_steps: int | None = Field(default=None, ge=1, le=10**6)
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
    # `evolution`: children by relaxation begin with their parents' weights
    inherit: bool = False
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

    @model_validator(mode="after")
    def _all_tried(self, info: ValidationInfo) -> Search:
        from searchspace.recipe import Candidate

        if (info.context or {}).get("reading"):
            return self
        keys = [Candidate.parse(text).key for text in self.first]
        for text, key in zip(self.first, keys):
            if keys.count(key) > self.repeats:
                raise ValueError(
                    f"first names {text} {counted(keys.count(key), 'time')}, however it is "
                    f"spelled, and repeats, the trainings of one architecture, is {self.repeats}: "
                    "name it less often, or raise repeats"
                )
        return self

    @model_validator(mode="after")
    def _has_parents(self) -> Search:
        if self.inherit and self.sampler != "evolution":
            raise ValueError(
                f"inherit is true and the sampler is {self.sampler}; only evolution has parents "
                "whose weights a child can inherit: take sampler: evolution, or leave inherit out"
            )
        return self


def _gpus(value: Any) -> Any:
    """`auto` or a number; said in one sentence, where a union would name its first part only."""
    if value == "auto" or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    ):
        return value
    raise ValueError(
        f"got {value!r}; it must be auto, 0, or a share of one GPU up to 1, such as 0.25"
    )


class Resources(Settings):
    """Where and on what trials run."""

    # auto: in process for one worker without an address, else Ray
    executor: Literal["auto", "in_process", "ray"] = "auto"
    # trials at the same time; auto: as many as fit
    workers: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    cpus_per_trial: float = Field(default=1, ge=0, le=1e6)
    # a share of one GPU; 0: trials train on CPUs; auto: where there are GPUs, as much as lets every
    # core train, an eighth at least
    gpus_per_trial: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0)], BeforeValidator(_gpus)
    ] = "auto"
    # GB; with `workers: auto` no machine gets more trials than its memory holds
    memory_per_trial: float = Field(default=1.2, ge=0, le=1e6)
    custom: dict[str, Annotated[float, Field(ge=0)]] = {}  # custom Ray resources of a trial
    # of a Ray cluster; None: RAY_ADDRESS, or Ray on this machine alone
    address: Annotated[str, Field(min_length=1)] | None = None
    # Ray's, for clusters whose nodes lack the package
    runtime_env: dict[str, Any] = {}
    # a worker silent for that long (no epoch finished) is replaced; None: see
    # `studies.workers.silence`
    trial_timeout: Annotated[Seconds, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_gpu(self) -> Resources:
        if self.gpus_per_trial != "auto" and self.gpus_per_trial > 1:
            raise ValueError(
                f"gpus_per_trial is {self.gpus_per_trial:g}, and a trial trains on one GPU: the "
                "others would stand idle; give a share of one GPU, up to 1, and more workers"
            )
        return self

    @property
    def gpu_share(self) -> float:
        """The share of one GPU whose memory a trial may fill; 0, no limit, where it is `auto`."""
        return 0.0 if self.gpus_per_trial == "auto" else self.gpus_per_trial


class Loggers(Settings):
    """Ray Tune's loggers, on top of the study's own records."""

    tensorboard: bool = False  # under DIR/tensorboard
    # arguments of ray.air.integrations.mlflow.MLflowLoggerCallback
    mlflow: dict[str, Any] | None = None
    # arguments of ray.air.integrations.wandb.WandbLoggerCallback
    wandb: dict[str, Any] | None = None
