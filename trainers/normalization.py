"""Batch normalisation of regular fields, with ReLU, at the price of ordinary batch norm in channels-last layout."""

from __future__ import annotations

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

    def forward(self, maps: Tensor) -> Tensor:
        """The normalised maps [batch, fields x order, height, width]. Raises ValueError in training on one value per field."""
        if not self.training:
            normed = F.batch_norm(maps, *(self._per_channel(v) for v in (self.running_mean, self.running_var, self.weight, self.bias)),
                                  training=False, eps=EPSILON)
            return F.relu(normed, inplace=True) if self.relu else normed
        values = maps.shape[0] * maps.shape[2] * maps.shape[3] * self.order
        if values < 2:
            raise ValueError("batch norm needs at least two values per field in training; use a larger batch")
        mean, variance = _statistics(maps, self.fields)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), MOMENTUM)
            self.running_var.lerp_((variance * (values / (values - 1))).to(self.running_var.dtype), MOMENTUM)
        return _Normalise.apply(maps, self.weight, self.bias, mean, variance, self.relu)

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


def _statistics(maps: Tensor, fields: int) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) of each field [fields], in float32 at least, without gradient."""
    maps = maps.detach()
    channels, dtype = maps.shape[1], torch.promote_types(maps.dtype, torch.float32)
    if maps.device.type == "cpu":
        # One pass in any layout; var_mean over the outer dimensions of channels-last maps takes 15 times as long (torch 2.15).
        # The buffers say in which dtype the statistics are kept; their values are not used.
        unused = torch.zeros(2, channels, dtype=dtype)
        mean, variance = torch.batch_norm_update_stats(maps, unused[0], unused[1], MOMENTUM)
    else:
        variance, mean = torch.var_mean(maps.to(dtype), (0, 2, 3), unbiased=False)
    mean, variance = mean.reshape(fields, -1), variance.reshape(fields, -1)
    of_field = mean.mean(1)
    return of_field, variance.mean(1) + (mean - of_field[:, None]).square().mean(1)


class _Normalise(torch.autograd.Function):
    """(maps - mean) / sqrt(variance + eps) * weight + bias, then ReLU, with the gradient through the statistics."""

    @staticmethod
    def forward(ctx, maps, weight, bias, mean, variance, relu):
        order = maps.shape[1] // len(weight)
        dtype = mean.dtype
        normed = F.batch_norm(maps, _spread(mean, order), _spread(variance, order), _spread(weight.to(dtype), order),
                              _spread(bias.to(dtype), order), training=False, eps=EPSILON)
        if relu:
            normed = F.relu_(normed)
        ctx.relu = relu
        ctx.save_for_backward(maps, weight, mean, variance, normed if relu else None)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        maps, weight, mean, variance, normed = ctx.saved_tensors
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, normed, 0)
        fields = len(weight)
        order, values = maps.shape[1] // fields, maps.numel() // fields
        inverse = (variance + EPSILON).rsqrt()
        mean_c, inverse_c = _spread(mean, order), _spread(inverse, order)
        # Per channel: the sum of grad x (normalised maps), and the sum of grad; then per field.
        _, along, total = torch.ops.aten.native_batch_norm_backward(
            grad, maps, torch.ones_like(mean_c), mean_c, inverse_c, mean_c, inverse_c, True, EPSILON, [False, True, True])
        along, total = along.reshape(fields, order).sum(1), total.reshape(fields, order).sum(1)
        if not ctx.needs_input_grad[0]:
            return None, along.to(weight.dtype), total.to(weight.dtype), None, None, None
        # scale x (grad - total / values - normalised maps x along / values), in one affine pass over maps and one over grad
        scale = weight.to(inverse.dtype) * inverse
        minus = -scale / values
        part = F.batch_norm(maps, mean_c, _spread(variance, order), _spread(minus * along, order), _spread(minus * total, order),
                            training=False, eps=EPSILON)
        scale_c = _spread(scale, order)
        if maps.dtype == scale.dtype:
            part.addcmul_(grad, scale_c.view(1, -1, 1, 1))
        else:   # addcmul would round the scale to bfloat16; batch_norm takes it in float32
            part.add_(F.batch_norm(grad, torch.zeros_like(scale_c), torch.ones_like(scale_c), scale_c, None, training=False, eps=0.0))
        return part, along.to(weight.dtype), total.to(weight.dtype), None, None, None
