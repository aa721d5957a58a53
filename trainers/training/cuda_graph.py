"""Training steps of small networks on a GPU without their launch overhead: captured in a CUDA graph
and replayed.

A step of a small network is some hundred kernels of a few microseconds each, and Python takes
longer to launch one than the GPU to run it. A graph launches all of them at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from trainers.devices import wait

log = logging.getLogger(__name__)

NOT_REPLAYED = "training steps are not replayed from a CUDA graph"
# steps made one operation at a time before a capture, as torch.cuda.graph asks for
WARM_UP_STEPS = 3
FASTER = 0.95  # a replay must take less than this share of a step's time
# and change the network as the step does, up to this share of the change (bfloat16 and atomic sums
# vary)
DIFFERENT = 0.05


class Step(Protocol):
    """A function of a batch (pixels, labels) that makes one optimizer step on a network: it returns
    the loss [], detached.
    """

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the network's parameters."""
        ...

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        """What it draws from on the network's device."""
        ...

    def __call__(self, pixels: Tensor, labels: Tensor, /) -> Tensor:
        """The loss after one step on the batch."""
        ...


class CudaGraph:
    """A function of tensors, captured when this is made; a call copies its arguments into the
    graph's own and replays it.

    The function must launch the same kernels for all arguments of these shapes and wait for none of
    them. What it returns are the graph's own tensors, which the next call overwrites. Every replay
    goes on drawing from the `generators`, as a call of the function would. Raises RuntimeError
    where it cannot be captured.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Tensor,
        generators: tuple[torch.Generator, ...] = (),
    ) -> None:
        self._arguments = tuple(argument.clone() for argument in arguments)
        self._graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):
            self._result = function(*self._arguments)

    def __call__(self, *arguments: Tensor) -> Any:
        for own, given in zip(self._arguments, arguments, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._result


class _State(NamedTuple):
    """What a step changes, as it was."""

    tensors: list[Tensor]
    generators: list[Tensor]


class GraphedStep:
    """A training step at a learning rate; on a GPU that of full batches is replayed from a CUDA
    graph after a few, if that proves right and faster.

    Proof is one step made both ways from the same state: the loss and the change of the weights
    must agree. Whatever speaks against it, the steps go on as before, with the reason in the log.
    """

    def __init__(
        self,
        step: Step,
        full: int,
        *,
        cuda_graph: bool = True,
        make: Callable[..., CudaGraph] = CudaGraph,
    ) -> None:
        """`full` is the number of images of a full batch; without `cuda_graph` none is tried."""
        self._step, self._full, self._make = step, full, make
        self._graph: CudaGraph | None = None
        self._rate = torch.empty(0)  # [] on the device, which the graph reads
        # whether to try when the time has come
        self._open = cuda_graph and next(step.network.parameters()).device.type != "cpu"
        self._steps = 0

    @property
    def replays(self) -> bool:
        """True once full batches are replayed from a graph."""
        return self._graph is not None

    def __call__(self, pixels: Tensor, labels: Tensor, rate: float) -> Tensor:
        """The loss of a batch [] after one step on it at learning rate `rate`; overwritten by the
        next call.
        """
        full = len(pixels) == self._full
        if full and self._open and self._steps >= WARM_UP_STEPS:
            self._open = False
            self._try(pixels, labels, rate)
        if full and self._graph is not None:
            self._rate.fill_(rate)
            return self._graph(pixels, labels)
        self._steps += full
        self._set_rate(rate)
        return self._step(pixels, labels)

    def _set_rate(self, rate: float) -> None:
        for group in self._step.optimizer.param_groups:
            group["lr"] = rate

    def _try(self, pixels: Tensor, labels: Tensor, rate: float) -> None:
        """Captures the step and keeps the graph if it does what the step does, in less time."""
        before = self._state()
        self._set_rate(rate)
        loss, seconds = _timed(self._step, pixels, labels)
        loss, after = loss.clone(), self._state()
        self._restore(before)
        try:
            graph = self._capture(pixels, labels, rate)
            graph(pixels, labels)  # the first replay also sends the graph to the GPU
            self._restore(before)
            again, replayed = _timed(graph, pixels, labels)
        except RuntimeError as error:  # CUDA refuses to capture it, or has no memory for it
            self._restore(before)
            log.warning("%s: %s", NOT_REPLAYED, str(error).splitlines()[0])
            return
        apart = max(self._apart(before, after, self._state()), abs(float(again) / float(loss) - 1))
        self._restore(before)
        times = 1000 * replayed, 1000 * seconds
        if not apart < DIFFERENT:
            log.warning(
                "%s: a replay differs from a step by %.2g of its change", NOT_REPLAYED, apart
            )
        elif not replayed < FASTER * seconds:
            log.info("%s: a replay takes %.1f ms, a step %.1f ms", NOT_REPLAYED, *times)
        else:
            log.info("training steps are replayed from a CUDA graph: %.1f ms, were %.1f ms", *times)
            self._graph = graph

    def _capture(self, pixels: Tensor, labels: Tensor, rate: float) -> CudaGraph:
        """The graph of the step. In there the optimizer reads its rate from `_rate`; it is left as
        it was, for checkpoints and other batches.
        """
        self._rate = torch.full((), rate, device=pixels.device)
        groups = self._step.optimizer.param_groups
        before = [
            {name: group[name] for name in ("lr", "capturable") if name in group}
            for group in groups
        ]
        for group in groups:
            group["lr"] = self._rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            return self._make(self._step, pixels, labels, generators=self._step.generators)
        finally:
            for group, values in zip(groups, before):
                group.update(values)
            self._step.optimizer.zero_grad(set_to_none=True)  # they lie in the graph's memory

    def _tensors(self) -> Iterator[Tensor]:
        """All that a step changes, the network's parameters and buffers first."""
        yield from self._step.network.parameters()
        yield from self._step.network.buffers()
        for state in self._step.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def _state(self) -> _State:
        return _State(
            [tensor.detach().clone() for tensor in self._tensors()],
            [generator.get_state() for generator in self._step.generators],
        )

    @torch.no_grad()
    def _restore(self, state: _State) -> None:
        """In place, since a graph knows tensors by their address."""
        for tensor, value in zip(self._tensors(), state.tensors, strict=True):
            tensor.copy_(value)
        for generator, drawn in zip(self._step.generators, state.generators, strict=True):
            generator.set_state(drawn)

    def _apart(self, before: _State, after: _State, replayed: _State) -> float:
        """How far the replay's parameters, or buffers, are from the step's, as a share of what the
        step changed.
        """
        parameters, buffers = (
            len(list(self._step.network.parameters())),
            len(list(self._step.network.buffers())),
        )
        kinds = slice(parameters), slice(parameters, parameters + buffers)
        return max(
            _distance(after.tensors[kind], replayed.tensors[kind])
            / max(_distance(before.tensors[kind], after.tensors[kind]), 1e-12)
            for kind in kinds
        )


def _timed(function: Callable[..., Tensor], pixels: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """(what it returns, seconds until the GPU has done it)."""
    wait(pixels.device)
    began = time.perf_counter()
    result = function(pixels, labels)
    wait(pixels.device)
    return result, time.perf_counter() - began


def _distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The Euclidean distance of floating-point tensors."""
    return (
        sum(
            float((a.double() - b.double()).square().sum())
            for a, b in zip(one, other)
            if a.is_floating_point()
        )
        ** 0.5
    )
