"""Trainings that begin with another's weights: those of a network of which theirs is a relaxation
(`trainers.networks.relaxing`).

The first checkpoint of such a training holds the relaxed network and the relaxed state of the
optimizer, at the epoch of the schedule from which it goes on; from then on it is like any other.

One parameter becomes several, which share its gradient. What keeps the motion of the *function*:
SGD's momentum is copied to each of them. Adam's mean gradient and mean square are those of the
smaller gradients to come (divided by the number of copies, and by its square), so that the next
update is that of the parent (up to Adam's epsilon), and later ones are not scaled by statistics
that no longer hold. A relaxed network then learns, along the function of the parent, at 1/copies of
SGD's rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.geometry import counted
from trainers.data.datasets import Splits, batch, normaliser
from trainers.devices import pick_device
from trainers.networks.networks import Network, build
from trainers.networks.relaxing import ParameterMap, relax_network, require_same_function
from trainers.training import checkpoint
from trainers.training.checkpoint import TrainingProgress
from trainers.training.config import TrainingConfig
from trainers.training.step import build_optimizer, companions_of

SKIP_IMAGES = 512  # training images that a new skip connection is measured on


class TrainingPlace(NamedTuple):
    """A training: what is trained, how, and where its checkpoints lie."""

    architecture: Architecture
    config: TrainingConfig
    directory: Path


def begin(
    child: TrainingPlace, parent: TrainingPlace, epoch: int, load_splits: Callable[[], Splits]
) -> None:
    """Leaves a checkpoint of `epoch` of the child's schedule with the parent's last weights, unless
    the child has one; only then the images are read.

    Raises ValueError where the parent has no checkpoint, its images had other channels or classes,
    or the child's architecture is not a relaxation of the parent's that has its function; OSError
    where the checkpoint cannot be written.
    """
    owner = checkpoint.training_fingerprint(child.architecture, child.config)
    if checkpoint.read_checkpoint(child.directory, owner) is not None:
        return
    splits = load_splits()
    before, saved = _trained(parent, splits)
    cpu = torch.device("cpu")  # where convolutions are not rounded to fewer digits
    images, _ = batch(splits.train, torch.arange(min(SKIP_IMAGES, len(splits.train))), cpu)
    corners = child.config.corners
    prepared = normaliser(splits.mean, splits.std, cpu, corners=corners)(images)
    network = relax_network(before, child.architecture, images=prepared)
    require_same_function(before, network, prepared[:8])
    device = pick_device(child.config.training.device)
    network, companions = network.to(device), companions_of(child.config).to(device)
    optimizer = build_optimizer(network, child.config, companions)
    carry_over(saved["optimizer"], ParameterMap(before, child.architecture), network, optimizer)
    _keep_companions(saved, len(list(before.parameters())), companions, optimizer)
    child.directory.mkdir(parents=True, exist_ok=True)
    progress = TrainingProgress(epoch)
    checkpoint.save_checkpoint(child.directory, owner, network, optimizer, progress, companions)


def _trained(parent: TrainingPlace, splits: Splits) -> tuple[Network, Mapping[str, Any]]:
    """(the parent's network, its checkpoint). Raises ValueError."""
    owner = checkpoint.training_fingerprint(parent.architecture, parent.config)
    saved = checkpoint.read_checkpoint(parent.directory, owner)
    if saved is None:
        raise ValueError(
            f"there is no checkpoint in {parent.directory} whose weights could be inherited; "
            "choose a trial that was trained and whose folder is whole"
        )
    network = build(parent.architecture, channels=splits.channels, classes=len(splits.classes))
    for name, value in network.state_dict().items():
        if (held := saved["network"].get(name)) is None or held.shape != value.shape:
            raise ValueError(
                f"the checkpoint in {parent.directory} was trained on other images than these, "
                f"which have {counted(splits.channels, 'channel')} and "
                f"{counted(len(splits.classes), 'class')} ({name} "
                f"is {None if held is None else list(held.shape)} there, {list(value.shape)} "
                "here); weights are inherited on the same data"
            )
    network.load_state_dict(saved["network"])
    return network, saved


@torch.no_grad()
def carry_over(
    saved: Mapping[str, Any],
    relaxation: ParameterMap,
    network: Network,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Gives the new optimizer of the relaxed `network` the state that corresponds to the state dict
    `saved` of the parent's; parameters of new skip connections begin at rest. What the optimizer
    does not train (gamma of pathways) has no state in it.

    Nothing is carried over where the two are optimizers of different kinds.
    """
    old = [name for name, _ in relaxation.before.named_parameters()]
    parts: dict[str, dict[str, Tensor]] = {}
    for number, name in enumerate(old):
        for part, value in saved["state"].get(number, {}).items():
            if isinstance(value, Tensor):
                parts.setdefault(part, {})[name] = value
    state = _moved(parts, relaxation)
    kind = type(optimizer)
    if ("exp_avg" in parts) != issubclass(kind, torch.optim.Adam):
        return
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in network.named_parameters():
        if id(parameter) not in trained:
            continue
        values = {part: named[name].to(parameter) for part, named in state.items() if name in named}
        at_rest = {part: torch.zeros_like(parameter) for part in state if part != "step"}
        if state:
            optimizer.state[parameter] = at_rest | values
        if "step" in parts:  # the same for all
            optimizer.state[parameter]["step"] = next(iter(parts["step"].values())).clone()


@torch.no_grad()
def _keep_companions(
    saved: Mapping[str, Any], first: int, companions: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Gives what is trained beside the network the parent's state, where it trained the same;
    `first` is the number of its first parameter in the parent's optimizer.
    """
    theirs, here = saved.get("companions", {}), companions.state_dict()
    if {n: v.shape for n, v in theirs.items()} != {n: v.shape for n, v in here.items()}:
        return
    companions.load_state_dict(theirs)
    for number, parameter in enumerate(companions.parameters(), start=first):
        state = saved["optimizer"]["state"].get(number, {})
        if state and ("exp_avg" in state) == isinstance(optimizer, torch.optim.Adam):
            optimizer.state[parameter] = {
                part: value.clone() if part == "step" else value.to(parameter)
                for part, value in state.items()
            }


def _moved(parts: Mapping[str, Mapping[str, Tensor]], relaxation: ParameterMap) -> dict[str, Any]:
    """The state by part and name of parameter, without the count of steps."""
    if "exp_avg" not in parts:
        return {part: relaxation.moved(named) for part, named in parts.items() if part != "step"}
    mean, square = parts["exp_avg"], parts["exp_avg_sq"]
    # a gradient that was always 0 has not moved its parameter
    motion = {n: torch.where(square[n] > 0, m / square[n].sqrt(), 0) for n, m in mean.items()}
    squares = relaxation.spread({n: s / relaxation.copies(n) ** 2 for n, s in square.items()})
    means = {n: m * squares[n].sqrt() for n, m in relaxation.moved(motion).items()}
    return {"exp_avg": means, "exp_avg_sq": squares}
