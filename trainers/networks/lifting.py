"""The first convolution and its batch norm in one, in training: the norm's statistics are computed
from the image, not from the maps.

A convolution is a matrix product over the patches under its window, so mean and variance of its
outputs follow from the mean and the covariance of the patches: mean = W m, variance = diag(W C W').
A grey image has 9 values in a patch and 40 or more channels in the maps; with statistics and
normalisation inside the weights, no pass over the maps is left but the product and ReLU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.networks.normalization import EPSILON, FieldNorm

# values of a patch up to which it was faster: kernels of 3 in colour, of 5 in grey (2 cores, torch
# 2.15)
MOST_PATCH = 32


def fits(images: Tensor, weight: Tensor) -> bool:
    """True if the normalised convolution of `images` in training is cheaper this way, and no
    gradient goes to them.
    """
    return weight[0].numel() <= MOST_PATCH and not images.requires_grad


def lift(
    images: Tensor, weight: Tensor, norm: FieldNorm, stride: int, padding: int, dilation: int
) -> Tensor:
    """relu(norm(conv2d(images, weight))) in channels-last layout, with the running statistics of
    `norm` moved; ReLU only if it has one.

    Equal to rounding: the patches' moments are summed in float32 over an image and in float64 over
    the batch.
    """
    columns = _patches(images, weight.shape[-1], stride, padding, dilation)
    batch, height, width = columns.shape[1:]
    with torch.autocast(images.device.type, enabled=False):
        mean, covariance = _moments(columns)
        kernels = weight.flatten(1).double()
        mean, variance = norm.of_fields(
            kernels @ mean, ((kernels @ covariance) * kernels).sum(1).clamp_min(0)
        )
        norm.remember(mean, variance, batch * height * width * norm.order)
        scale = norm.weight * (variance + EPSILON).rsqrt()
        normalising = (
            torch.cat(
                [
                    kernels.view(norm.fields, norm.order, -1) * scale[:, None, None],
                    (norm.bias - mean * scale)[:, None, None].expand(-1, norm.order, 1),
                ],
                2,
            )
            .flatten(0, 1)
            .to(weight.dtype)
        )
    # A contiguous second factor: the gradient of a transposed one is the same product in an order
    # that takes 2.5 times as long.
    maps = columns.flatten(1).t() @ normalising.t().contiguous()
    if norm.relu:
        # before it becomes a view: the gradient of a change to a view copies all of it
        maps = F.relu_(maps)
    return maps.view(batch, height, width, len(weight)).permute(0, 3, 1, 2)


def _patches(images: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """The values under the window at every place, then a one for the shift: [channels x kernel x
    kernel + 1, batch, height, width].
    """
    padded = F.pad(images, (padding,) * 4) if padding else images
    reach = dilation * (kernel - 1) + 1
    windows = (
        padded.unfold(2, reach, stride)
        .unfold(3, reach, stride)[..., ::dilation, ::dilation]
        .permute(1, 4, 5, 0, 2, 3)
    )
    columns = images.new_empty(images.shape[1] * kernel**2 + 1, *windows.shape[3:])
    columns[-1] = 1
    columns[:-1].view(windows.shape).copy_(windows)
    return columns


def _moments(columns: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, covariance) of the patches, float64."""
    of_image = columns.transpose(0, 1).flatten(2)
    products = (
        torch.bmm(of_image, of_image.transpose(1, 2)).sum(0, dtype=torch.float64)
        / columns[0].numel()
    )
    mean = products[-1, :-1]
    return mean, products[:-1, :-1] - torch.outer(mean, mean)
