"""What a training step costs with relaxed weights, and with the projection loss, as ratios.

    python tests/benchmarks/bench_relaxed.py [--rounds 15] [--batch 128]

Steps of P4CNN over C4 (28 px, 40 channels, free filters), made as `trainers.training.step` makes
them, in turn in one process, in reversed order every other round; each ratio is the median over
rounds of (with / without in the same round), with quartiles, and that of processor time. Where
convolutions are computed by compiled code, the steps without are also compared with torch's.
"""

from __future__ import annotations

import argparse

import torch
from bench_step import CLASSES, measure, ratio, with_torchs

from searchspace.recipe import Candidate
from trainers.data.datasets import normaliser
from trainers.networks.kernels import fourier
from trainers.networks.networks import build
from trainers.process import tune_process
from trainers.settings import Data, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.step import TrainingStep

STAGES = "28px: 10k3p0@C4{}, 10k3p0 max2/2, 10k3p0, 10k3p0, 10k3p0, 10k3p0, 10k4p0{}"
PLAIN = "28px: 40k3p0, 40k3p0 max2/2, 40k3p0, 40k3p0, 40k3p0, 40k3p0, 40k4p0{}"
TEXTS = {
    "constraint": STAGES.format("", ""),
    "pathway +C1": STAGES.format("+C1", ""),
    "pathway +C2": STAGES.format("+C2", ""),
    "pathway +C1, dual": STAGES.format("+C1", " gamma=dual"),
    "mixed |C2|C1": STAGES.format("|C2|C1", ""),
    "banks b2": STAGES.format("b2", ""),
    "softness ~0.3": STAGES.format("~0.3", ""),
    "pathway +C1, projection loss": STAGES.format("+C1", " loss=projection:0.1"),
    "plain": PLAIN.format(""),
    "plain, projection loss": PLAIN.format(" loss=projection:0.1"),
}
REFERENCES = {
    "pathway +C1, projection loss": "pathway +C1",
    "plain, projection loss": "plain",
    "plain, torch's": "plain",
}


def stepper(text: str, images: torch.Tensor, labels: torch.Tensor):
    """A training step of the candidate."""
    candidate = Candidate.parse(text)
    module = build(candidate.architecture, channels=1, classes=CLASSES).train()
    training = Training(precision="float32", learning_rate=1e-3, weight_decay=0)
    config = TrainingConfig(
        Data(name="mnist"), training, Symmetry(group="C4"), recipe=candidate.recipe
    )
    step = TrainingStep.of(
        module, candidate.architecture, config, normaliser((0.0,), (1.0,), images.device)
    )
    return lambda: step(images, labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    tune_process(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(given.batch, 1, 28, 28, generator=generator)
    labels = torch.randint(CLASSES, (given.batch,), generator=generator)
    steps = {name: stepper(text, images, labels) for name, text in TEXTS.items()}
    references = ["constraint"]
    if fourier.fourier_library() is not None:
        steps["constraint, torch's"] = with_torchs(steps["constraint"])
        references.append("constraint, torch's")
        steps["plain, torch's"] = with_torchs(steps["plain"])
    times = measure(steps, given.rounds)
    for name in steps:
        for reference in [REFERENCES[name]] if name in REFERENCES else references:
            if (name != reference and not name.startswith("plain")) or name in REFERENCES:
                r = ratio(times, name, reference)
                print(
                    f"{name:30} / {reference:20} {r['median']:.3f} "
                    f"({r['low']:.3f}..{r['high']:.3f}), processor {r['processor']:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    from benchmark_data import run  # beside this file

    run(main)
