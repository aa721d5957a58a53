"""What measuring costs, side by side in one process: `python tests/benchmarks/bench_measures.py [ROUNDS]`.

Prints how many times faster the layerwise equivariance error is than one forward per layer and element, and the time of the whole
measurement of a network of 25,000 parameters on 2,000 images. Times are CPU seconds, medians over interleaved rounds.
"""

import statistics
import sys
import time

import torch

from searchspace.architecture import Architecture
from searchspace.groups import IDENTITY, Group
from trainers.actions import act, act_on_fields
from trainers.equivariance import equivariance_error
from trainers.fold import fold
from trainers.measurement import measure
from trainers.networks import build, channels_last

P4CNN = "28px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0"


@torch.no_grad()
def per_layer_and_element(model, images, group):
    """The same errors, each from forwards of its own: f(x) and f(g x) for every layer and element."""
    errors, count = {}, len(model.forward_with_stages(images[:1])[1])
    for layer in range(count + 1):
        for element in (e for e in group.elements if e != IDENTITY):
            outputs = []
            for batch in (images, act(images, element)):
                logits, stages = model.forward_with_stages(batch)
                outputs.append((logits, *stages)[layer])
            expected = act_on_fields(outputs[0], element, group) if layer else outputs[0]
            spread = 2 * outputs[0].var(0).mean()
            errors[layer, element] = float(((outputs[1] - expected).square().mean() / spread).sqrt())
    return errors


def timed(function, *arguments, **options):
    began = time.process_time()
    result = function(*arguments, **options)
    return time.process_time() - began, result


def main(rounds=5):
    torch.set_num_threads(1)
    network = build(Architecture.parse(P4CNN), channels=1, classes=10).eval()
    group, images = Group.parse("C4"), torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    fields = {f"stage {n}": group for n in range(1, 8)}

    def batched():
        return equivariance_error(fold(network).to(memory_format=torch.channels_last), images, group, fields=fields, normalise=channels_last)

    slow, fast = [], []
    for _ in range(rounds):
        slow.append(timed(per_layer_and_element, network, images, group))
        fast.append(timed(batched))
    for layer, stage in enumerate((fast[0][1].logits, *fast[0][1].stages)):
        for element, error in zip(stage.elements, stage.relative):
            assert abs(error - slow[0][1][layer, element]) < 1e-5, (stage.stage, element, error, slow[0][1][layer, element])
    ratio = statistics.median(a[0] / b[0] for a, b in zip(slow, fast))
    print(f"layerwise error, 64 images, C4: {statistics.median(b[0] for b in fast):.3f} s; per layer and element "
          f"{statistics.median(a[0] for a in slow):.3f} s; {ratio:.1f} times faster (median of {rounds})")
    images = torch.rand(2000, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    torch.set_num_threads(2)
    began = time.perf_counter()
    seconds, _ = timed(measure, network, images, torch.arange(2000) % 10, Group.parse("D4"))
    print(f"the whole measurement, 2,000 images, D4: {time.perf_counter() - began:.1f} s, {seconds:.1f} CPU seconds")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
