"""Batch normalisation of regular fields, with ReLU, at the price of ordinary batch norm in channels-last layout."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPSILON = 1e-5      # added to the variance, as in torch and escnn
MOMENTUM = 0.1      # weight of a batch in the running statistics, as in torch and escnn


class FieldNorm(nn.Module):
    """Batch norm with one mean, variance, scale and shift per field of `order` channels, then ReLU if `relu`.

    Statistics are taken over batch, space and the channels of the field, which a group element permutes: the layer is
    equivariant. Equal to escnn's InnerBatchNorm and, for `order` 1, to BatchNorm2d. They are float32 also for bfloat16 maps.
    """

    def __init__(self, fields: int, order: int, relu: bool) -> None:
        super().__init__()
        self.fields, self.order, self.relu = fields, order, relu
        self.weight = nn.Parameter(torch.ones(fields))
        self.bias = nn.Parameter(torch.zeros(fields))
        self.register_buffer("running_mean", torch.zeros(fields))
        self.register_buffer("running_var", torch.ones(fields))
        # [channels, channels]: a product with it replaces each channel's value by the mean over its field, in one operation.
        self.register_buffer("average", torch.block_diag(*[torch.full((order, order), 1 / order)] * fields), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """The normalised maps [batch, fields x order, height, width]. Raises ValueError in training on one value per field."""
        if not self.training:
            normed = F.batch_norm(maps, *(self._per_channel(v) for v in (self.running_mean, self.running_var, self.weight, self.bias)),
                                  training=False, eps=EPSILON)
            return F.relu(normed, inplace=True) if self.relu else normed
        values = maps.shape[0] * maps.shape[2] * maps.shape[3] * self.order
        if values < 2:
            raise ValueError("batch norm needs at least two values per field in training; use a larger batch")
        with torch.autocast(maps.device.type, enabled=False):       # which would take the means in bfloat16
            mean, variance = _statistics(maps, self.average if self.order > 1 else None)
        with torch.no_grad():
            self.running_mean.lerp_(mean[::self.order].to(self.running_mean.dtype), MOMENTUM)
            self.running_var.mul_(1 - MOMENTUM).add_(variance[::self.order], alpha=MOMENTUM * values / (values - 1))
        affine = torch.stack((self.weight, self.bias))[:, :, None].expand(-1, -1, self.order).reshape(2, -1)
        return _Normalise.apply(maps, affine, mean, variance, self.average if self.order > 1 else None, self.relu)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(scale, shift) per channel, float64: in evaluation the layer is x * scale + shift, then ReLU."""
        scale = self.weight.double() / (self.running_var.double() + EPSILON).sqrt()
        shift = self.bias.double() - self.running_mean.double() * scale
        return self._per_channel(scale).detach(), self._per_channel(shift).detach()

    def _per_channel(self, per_field: Tensor) -> Tensor:
        return _spread(per_field, self.order)

    def extra_repr(self) -> str:
        return f"fields={self.fields}, order={self.order}, relu={self.relu}"


def _spread(per_field: Tensor, order: int) -> Tensor:
    """[fields] -> [fields x order]"""
    return per_field if order == 1 else per_field[:, None].expand(-1, order).reshape(-1)


def _statistics(maps: Tensor, average: Optional[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) of the field of each channel [fields x order], in float32 at least, without gradient."""
    maps = maps.detach()
    channels, dtype = maps.shape[1], torch.promote_types(maps.dtype, torch.float32)
    if maps.device.type == "cpu":
        # One pass in any layout; var_mean over the outer dimensions of channels-last maps takes 15 times as long (torch 2.15).
        # The buffer says in which dtype the statistics are kept; its values are not used.
        unused = torch.zeros(channels, dtype=dtype)
        mean, variance = torch.batch_norm_update_stats(maps, unused, unused, MOMENTUM)
    else:
        variance, mean = torch.var_mean(maps.to(dtype), (0, 2, 3), unbiased=False)
    if average is None:
        return mean, variance
    average = average.to(mean.dtype)
    of_field = mean @ average
    apart = mean - of_field
    return of_field, torch.addcmul(variance, apart, apart) @ average


class _Normalise(torch.autograd.Function):
    """(maps - mean) / sqrt(variance + eps) * scale + shift, then ReLU, with the gradient through the statistics.

    `affine` is (scale, shift) [2, channels]; mean and variance are those of the channel's field [channels]; `average` is FieldNorm's. Few operations: at
    these sizes each costs as much as the normalisation of a small map.
    """

    @staticmethod
    def forward(ctx, maps, affine, mean, variance, average, relu):
        scale, shift = affine.to(mean.dtype)
        normed = F.batch_norm(maps, mean, variance, scale, shift, training=False, eps=EPSILON)
        if relu:
            normed = F.relu_(normed)
        ctx.relu = relu
        ctx.save_for_backward(maps, affine, mean, variance, average, normed if relu else None)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        maps, affine, mean, variance, average, normed = ctx.saved_tensors
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, normed, 0)
        inverse = (variance + EPSILON).rsqrt()
        # Per channel: the sums of grad x (normalised maps) and of grad.
        _, along, total = torch.ops.aten.native_batch_norm_backward(
            grad, maps, None, mean, inverse, mean, inverse, True, EPSILON, [False, True, True])
        sums = torch.stack((along, total))
        grad_affine = sums.to(affine.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_affine, None, None, None, None
        # scale / sqrt(variance) x (grad - mean of grad - normalised maps x mean of grad x normalised maps), means over the field:
        # one affine pass over the maps, one over grad.
        if average is not None:
            sums = sums @ average.to(sums.dtype)
        scale = affine[0].to(inverse.dtype) * inverse
        along, total = sums * (scale * (-maps.shape[1] / maps.numel()))
        part = F.batch_norm(maps, mean, variance, along, total, training=False, eps=EPSILON)
        if maps.dtype == scale.dtype:
            part.addcmul_(grad, scale.view(1, -1, 1, 1))
        else:   # addcmul would round the scale to bfloat16; batch_norm takes it in float32
            part.add_(F.batch_norm(grad, torch.zeros_like(scale), torch.ones_like(scale), scale, None, training=False, eps=0.0))
        return part, grad_affine, None, None, None, None
