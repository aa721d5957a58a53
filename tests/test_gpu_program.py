"""The program that measures a GPU compares every network there with the CPU; here on the mock."""

import sys
from itertools import count
from pathlib import Path

from support.mock_gpu import mocked, process_with_mock

BENCHMARKS = Path(__file__).parent / "benchmarks"


def _parity() -> int:
    sys.path.insert(0, str(BENCHMARKS))
    import bench_gpu

    with mocked():
        return bench_gpu.parity("mock")


def _parity_of_a_device_that_is_wrong() -> int:
    sys.path.insert(0, str(BENCHMARKS))
    import bench_gpu

    bench_gpu.NETWORKS = bench_gpu.NETWORKS[1:2]
    calls, outputs = count(), bench_gpu._outputs  # the CPU's, the device's, in turn
    bench_gpu._outputs = lambda network, images: [
        value * (1 + 1e-2 * (place % 2))
        for place in [next(calls)]
        for value in outputs(network, images)
    ]
    return bench_gpu.parity("cpu")


def test_every_network_gives_the_cpus_values_on_the_device():
    with process_with_mock() as process:
        assert process.submit(_parity).result() == 0


def test_values_that_differ_are_counted():
    with process_with_mock() as process:
        assert process.submit(_parity_of_a_device_that_is_wrong).result() == 2
