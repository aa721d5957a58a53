# pyright: reportMissingImports=false
"""Two searches by BoTorch on a recorded table, for `bench_search.py`; they need
`pip install 'equisearch[botorch]'`.

Both see one-hot choices, compare every candidate of the space, and pay for nothing twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from botorch.acquisition.multi_objective.logei import (
    qLogExpectedHypervolumeImprovement,
    qLogNoisyExpectedHypervolumeImprovement,
)
from botorch.acquisition.multi_objective.objective import MCMultiOutputObjective
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.transforms import Standardize
from botorch.sampling import SobolQMCNormalSampler
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from gpytorch.mlls import SumMarginalLogLikelihood

from searchspace.recipe import Candidate
from studies.replays.record import RecordedTable
from studies.replays.steps import Paid, SearchStep, changed, known
from studies.samplers.inversion import parameters_of

DRAWS = 64
START = 5  # trainings to the end before the model learns, the known ones among them
START_SHORT = 8  # the same of short trainings
MOST_ITERATIONS = 75  # of a fit, which begins at the last one's settings


def one_hot(table: RecordedTable) -> torch.Tensor:
    """The choices of each entry (entries, columns), 0 to 1; a choice that does not apply is one
    more value, and numbers stay numbers.
    """
    study = changed(table.study, {"space.size_by": "pixels"})
    chosen = []
    for entry in table.entries:
        candidate = Candidate.parse(entry.architecture)
        chosen.append(parameters_of(study, candidate.with_learning_rate(entry.learning_rate)) or {})
    columns = []
    for name in sorted({name for choices in chosen for name in choices}):
        values = [choices.get(name) for choices in chosen]
        if all(isinstance(value, (int, float)) for value in values):
            low, high = min(values), max(values)
            columns.append([(value - low) / max(1, high - low) for value in values])
        else:
            columns += [[float(v == option) for v in values] for option in dict.fromkeys(values)]
    rows = torch.tensor(columns, dtype=torch.double).T
    return rows[:, rows.std(0) > 0]


class _Fitted:
    """Gaussian processes for two scores, each fit begun at the settings of the one before."""

    def __init__(self) -> None:
        self._before: list[dict[str, Any]] | None = None

    def models(self, x: torch.Tensor, y: torch.Tensor) -> list[SingleTaskGP]:
        """Fitted to scores `y` (n, 2) at `x` (n, columns)."""
        models = [SingleTaskGP(x, y[:, [k]], outcome_transform=Standardize(m=1)) for k in range(2)]
        if self._before is not None:
            for model, settings in zip(models, self._before):
                model.load_state_dict(settings, strict=False)
        joint = ModelListGP(*models)
        fit_gpytorch_mll(
            SumMarginalLogLikelihood(joint.likelihood, joint),
            optimizer_kwargs={"options": {"maxiter": MOST_ITERATIONS}},
        )
        hyper = ("raw_", "mean_module", "likelihood")
        self._before = [
            {k: v.clone() for k, v in m.state_dict().items() if any(h in k for h in hyper)}
            for m in models
        ]
        return models


def _order(table: RecordedTable, seed: int) -> list[int]:
    """The known architectures, then the others in random order."""
    place = {entry.key: i for i, entry in enumerate(table.entries)}
    first = [place[c.key] for c in known(table) if c.key in place]
    shuffled = torch.randperm(len(place), generator=torch.Generator().manual_seed(seed))
    return list(dict.fromkeys([*first, *shuffled.tolist()]))


def noisy_steps(table: RecordedTable, seed: int) -> Iterator[SearchStep]:
    """qLogNEHVI (Daulton et al. 2021; Ament et al. 2023): every training to the end."""
    x, epochs = one_hot(table), table.study.training.epochs
    y = torch.tensor([entry.epochs[-1] for entry in table.entries], dtype=torch.double)
    paid, fitted, order = Paid(table), _Fitted(), _order(table, seed)
    done: list[int] = []
    while len(done) < len(table.entries):
        if len(done) < START:
            chosen = order[len(done)]
        else:
            left = [i for i in range(len(x)) if i not in set(done)]
            acquisition = qLogNoisyExpectedHypervolumeImprovement(
                ModelListGP(*fitted.models(x[done], y[done])),
                ref_point=[0.0, 0.0],
                X_baseline=x[done],
                prune_baseline=True,
                sampler=SobolQMCNormalSampler(torch.Size([DRAWS]), seed=seed),
            )
            with torch.no_grad():
                chosen = left[int(acquisition(x[left].unsqueeze(1)).argmax())]
        done.append(chosen)
        yield paid.until(table.entries[chosen], epochs)


def fidelity_steps(table: RecordedTable, seed: int) -> Iterator[SearchStep]:
    """Multi-fidelity EHVI (Irshad et al., arXiv:2112.13901): epochs are an input and the third
    objective, the gain is divided by the epochs that are still to pay, trainings continue.
    """
    x, last = one_hot(table), table.study.training.epochs
    rungs = [*(r for r in table.study.search.rungs if r < last), last]
    scores = torch.tensor([entry.epochs for entry in table.entries], dtype=torch.double)
    paid, fitted, order = Paid(table), _Fitted(), _order(table, seed)
    seen: list[tuple[int, int]] = []  # (entry, epoch)
    trained: dict[int, int] = {}
    while True:
        options = [(i, r) for i in range(len(x)) for r in rungs if r > trained.get(i, 0)]
        if not options:
            return
        if len(seen) < START_SHORT:
            chosen = order[len(seen)], rungs[0]
        else:
            value = _gain(fitted, x, scores, seen, options, last, seed)
            cost = torch.tensor([float(r - trained.get(i, 0)) for i, r in options])
            chosen = options[int((value - cost.log()).argmax())]
        seen += [(chosen[0], r) for r in rungs if trained.get(chosen[0], 0) < r <= chosen[1]]
        trained[chosen[0]] = chosen[1]
        yield paid.until(table.entries[chosen[0]], chosen[1])


class _WithFidelity(MCMultiOutputObjective):
    """Both scores, and the share of the epochs as the third objective."""

    def forward(self, samples: torch.Tensor, X: torch.Tensor | None = None) -> torch.Tensor:
        """Appends the last column of `X`, which is known."""
        assert X is not None
        share = X[..., -1:].expand(*samples.shape[:-1], 1)
        return torch.cat([samples, share], -1)


def _gain(
    fitted: _Fitted,
    x: torch.Tensor,
    scores: torch.Tensor,
    seen: list[tuple[int, int]],
    options: list[tuple[int, int]],
    last: int,
    seed: int,
) -> torch.Tensor:
    """The logarithm of the expected gain of each option in (accuracy, symmetry accuracy, share of
    the epochs).
    """

    def at(pairs: list[tuple[int, int]]) -> torch.Tensor:
        share = torch.tensor([[r / last] for _, r in pairs], dtype=torch.double)
        return torch.cat([x[[i for i, _ in pairs]], share], 1)

    y = torch.stack([scores[i, r - 1] for i, r in seen])
    corner = torch.zeros(3, dtype=torch.double)
    known_points = torch.cat([y, at(seen)[:, -1:]], 1)
    acquisition = qLogExpectedHypervolumeImprovement(
        ModelListGP(*fitted.models(at(seen), y)),
        ref_point=corner.tolist(),
        partitioning=FastNondominatedPartitioning(corner, known_points),
        sampler=SobolQMCNormalSampler(torch.Size([DRAWS]), seed=seed),
        objective=_WithFidelity(),
    )
    with torch.no_grad():
        value = acquisition(at(options).unsqueeze(1))
    return value.float().nan_to_num(-math.inf)


BOTORCH = {
    "BoTorch qLogNEHVI": noisy_steps,
    "BoTorch multi-fidelity EHVI": fidelity_steps,
}
