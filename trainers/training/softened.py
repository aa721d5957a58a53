"""Trained networks that become others without training (`trainers.networks.soft.expressing`), with
the training images that measure their statistics, and kept as a training keeps its own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from searchspace.weights.softened import Softened
from trainers.data.datasets import Splits, batch, normaliser
from trainers.networks.networks import Network
from trainers.networks.soft.expressing import softened_network
from trainers.settings import Corners
from trainers.training import checkpoint
from trainers.training.checkpoint import TrainingProgress
from trainers.training.config import TrainingConfig
from trainers.training.step import build_optimizer

BATCH_NORM_IMAGES = 256  # training images for the statistics of batch norm


def statistics_images(network: Network, splits: Splits, corners: Corners) -> Tensor:
    """The first training images as the network takes them, on its device."""
    device = next(network.parameters()).device
    images, _ = batch(splits.train, torch.arange(min(BATCH_NORM_IMAGES, len(splits.train))), device)
    return normaliser(splits.mean, splits.std, device, corners=corners)(images)


def soften_trained(network: Network, how: Softened, splits: Splits, corners: Corners) -> Network:
    """What `network`, trained on `splits`, becomes, in evaluation. Raises ValueError."""
    return softened_network(network, how, statistics_images(network, splits, corners))


def save_softened(network: Network, config: TrainingConfig, directory: Path, epoch: int) -> None:
    """Leaves the network in `directory` as the checkpoint of a training by `config` after `epoch`
    epochs. Raises OSError where it cannot be written.
    """
    owner = checkpoint.training_fingerprint(network.architecture, config)
    optimizer = build_optimizer(network, config)
    checkpoint.save_checkpoint(directory, owner, network, optimizer, TrainingProgress(epoch))
