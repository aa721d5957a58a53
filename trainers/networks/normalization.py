"""Batch normalisation of regular fields, with ReLU, at the price of ordinary batch norm in
channels-last layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainers.networks.dropout import without_dropout

EPSILON = 1e-5  # added to the variance, as in torch and escnn
MOMENTUM = 0.1  # weight of a batch in the running statistics, as in torch and escnn


class PoolWindow(NamedTuple):
    """The window of a max pool, pixels."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    ceil: bool


class FieldNorm(nn.Module):
    """Batch norm with one mean, variance, scale and shift per field of `order` channels, then ReLU
    if `relu`.

    Statistics are taken over batch, space and the channels of the field, which a group element
    permutes: the layer is equivariant. Equal to escnn's InnerBatchNorm and, for `order` 1, to
    BatchNorm2d (Ioffe & Szegedy, arXiv:1502.03167). They are float32 also for bfloat16 maps.
    """

    running_mean: Tensor  # [fields]
    running_var: Tensor  # [fields], unbiased
    gather: Tensor  # [channels, channels]

    def __init__(self, fields: int, order: int, relu: bool) -> None:
        super().__init__()
        self.fields, self.order, self.relu = fields, order, relu
        self.momentum = MOMENTUM
        self.weight = nn.Parameter(torch.ones(fields))
        self.bias = nn.Parameter(torch.zeros(fields))
        self.register_buffer("running_mean", torch.zeros(fields))
        self.register_buffer("running_var", torch.ones(fields))
        # [channels, channels]: a product with it replaces each channel's value by the sum over its
        # field, in one operation.
        self.register_buffer(
            "gather", torch.block_diag(*[torch.ones(order, order)] * fields), persistent=False
        )

    def forward(self, maps: Tensor, skip: Tensor | None = None) -> Tensor:
        """The normalised maps [batch, fields x order, height, width], plus `skip`, then ReLU if
        `relu`.

        Raises ValueError in training on one value per field.
        """
        if not self.training:
            normed = F.batch_norm(
                maps,
                *(
                    self._per_channel(v)
                    for v in (self.running_mean, self.running_var, self.weight, self.bias)
                ),
                training=False,
                eps=EPSILON,
            )
            if skip is not None:
                normed = normed + skip
            return F.relu(normed, inplace=True) if self.relu else normed
        mean, variance = self._of_batch(maps)
        self.remember(mean, variance, maps.numel() // self.fields)
        return _Normalise.apply(
            maps, skip, self.weight, self.bias, mean, variance, self._gather, self.relu
        )

    def pooled(self, maps: Tensor, signs: Tensor, pool: PoolWindow) -> Tensor:
        """ReLU(max pool(normalised maps)) in training, of a convolution whose channels were
        multiplied by `signs()`.

        A maximum commutes with a rising affine map, so that the pooled maps are normalised, and
        ReLU taken, on a fraction of the pixels.
        """
        mean, variance = self._of_batch(maps)
        self.remember(mean * signs, variance, maps.numel() // self.fields)
        return _NormaliseMaximum.apply(
            maps, self.weight * signs, self.bias, mean, variance, self._gather, pool
        )

    def signs(self) -> Tensor:
        """-1 for fields whose scale is negative, else 1 [fields]: with these factors in the weights
        of the convolution before, all scales are positive.
        """
        return torch.where(self.weight.detach() < 0, -1.0, 1.0).to(self.weight.dtype)

    def of_fields(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, biased variance) of the fields [fields], from those of the channels [channels]."""
        if self.order == 1:
            return mean, variance
        between, mean = torch.var_mean(mean.view(-1, self.order), 1, unbiased=False)
        return mean, between.add(variance.view(-1, self.order).sum(1), alpha=1 / self.order)

    @torch.no_grad()
    def remember(self, mean: Tensor, variance: Tensor, values: int) -> None:
        """Moves the running statistics towards those of a batch [fields] with that many values per
        field.

        Raises ValueError for a single value, which has no variance.
        """
        if values < 2:
            raise ValueError(
                "batch norm needs at least two values per field in training; use a larger batch"
            )
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.mul_(1 - self.momentum).add_(
            variance, alpha=self.momentum * values / (values - 1)
        )

    @property
    def _gather(self) -> Tensor | None:
        return self.gather if self.order > 1 else None

    @torch.no_grad()
    def _of_batch(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return self.of_fields(*_channel_statistics(maps))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(scale, shift) per channel, float64: in evaluation the layer is x * scale + shift, then
        ReLU.
        """
        scale = self.weight.double() / (self.running_var.double() + EPSILON).sqrt()
        shift = self.bias.double() - self.running_mean.double() * scale
        return self._per_channel(scale).detach(), self._per_channel(shift).detach()

    def _per_channel(self, per_field: Tensor) -> Tensor:
        return _broadcast(per_field, self.order)

    def extra_repr(self) -> str:
        return f"fields={self.fields}, order={self.order}, relu={self.relu}"


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces the running statistics of every FieldNorm in `network` by their mean over these
    batches of images, under the present weights.

    Running averages lag behind weights that move: while the learning rate is high, evaluation with
    them says little about the network (PreciseBN; Wu & Johnson, arXiv:2105.07576, section 3). As
    in evaluation, nothing is dropped. Leaves the network in training mode.
    """
    norms = [module for module in network.modules() if isinstance(module, FieldNorm)]
    network.train()
    try:
        with without_dropout(network):
            for number, images in enumerate(batches, start=1):
                for norm in norms:
                    norm.momentum = 1 / number  # the mean of all batches so far
                network(images)
    finally:
        for norm in norms:
            norm.momentum = MOMENTUM


def _broadcast(per_field: Tensor, order: int) -> Tensor:
    """Each field's value for all of its channels: [..., fields] -> [..., fields x order].

    Contiguous: of a single field the channels would be one value with a stride of 0, and torch 2.15
    reads mean and deviation of batch norm's backward in channels-last layout as if they lay side by
    side.
    """
    if order == 1:
        return per_field
    return per_field[..., None].expand(*per_field.shape, order).flatten(-2).contiguous()


def _channel_statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) of each channel, in float32 at least."""
    if maps.device.type != "cpu":  # which sums in float32 at least
        return torch.batch_norm_update_stats(maps, None, None, MOMENTUM)
    # Fast in any layout; var_mean over the outer dimensions of channels-last maps takes 15 times as
    # long (torch 2.15). The buffer sets the dtype of the statistics; its values are not
    # read.
    unused = torch.empty(maps.shape[1], dtype=torch.promote_types(maps.dtype, torch.float32))
    return torch.batch_norm_update_stats(maps, unused, unused, MOMENTUM)


class _Normalise(torch.autograd.Function):
    """(maps - mean) / sqrt(variance + eps) * scale + shift, plus `skip`, then ReLU, with the
    gradient through the statistics.

    Scale, shift, mean and variance are per field. Few operations: on small maps each costs as much
    as the normalisation.
    """

    @staticmethod
    def forward(ctx, maps, skip, scale, shift, mean, variance, gather, relu):
        vectors = _per_channel(maps, mean, variance, scale, shift)
        normed = _affine(maps, *vectors)
        if skip is not None:
            normed = normed.add_(skip)
        if relu:
            normed = F.relu_(normed)
        ctx.relu, ctx.skip, ctx.dtype, ctx.order = (
            relu,
            None if skip is None else skip.dtype,
            scale.dtype,
            maps.shape[1] // len(scale),
        )
        ctx.save_for_backward(maps, vectors, gather, normed if relu else None)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        maps, vectors, gather, normed = ctx.saved_tensors
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, normed, 0)
        parameters, grad_maps, factor = _through_statistics(grad, maps, maps, vectors, gather, ctx)
        if grad_maps is not None:
            if maps.dtype == factor.dtype:
                grad_maps.addcmul_(grad, factor.view(1, -1, 1, 1))
            else:  # addcmul would round the factor to bfloat16; batch_norm takes it in float32
                grad_maps.add_(
                    F.batch_norm(
                        grad,
                        torch.zeros_like(factor),
                        torch.ones_like(factor),
                        factor,
                        None,
                        training=False,
                        eps=0.0,
                    )
                )
        return (
            grad_maps,
            None if ctx.skip is None else grad.to(ctx.skip),
            *parameters,
            None,
            None,
            None,
            None,
        )


class _NormaliseMaximum(torch.autograd.Function):
    """ReLU of the max-pooled maps, normalised by the statistics of all of them. `scale` must not be
    negative.
    """

    @staticmethod
    def forward(ctx, maps, scale, shift, mean, variance, gather, pool):
        vectors = _per_channel(maps, mean, variance, scale, shift)
        pooled, places = F.max_pool2d(maps, *pool, return_indices=True)
        normed = F.relu_(_affine(pooled, *vectors))
        ctx.dtype, ctx.order = scale.dtype, maps.shape[1] // len(scale)
        ctx.save_for_backward(maps, vectors, gather, normed, pooled, places)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        maps, vectors, gather, normed, pooled, places = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, normed, 0)
        parameters, grad_maps, factor = _through_statistics(
            grad, pooled, maps, vectors, gather, ctx
        )
        if grad_maps is not None:
            # As [batch, pixels, channels]: a view of channels-last maps.
            grad_maps = grad_maps.contiguous(memory_format=torch.channels_last)
            chosen = grad * factor.view(1, -1, 1, 1).to(grad.dtype)
            _pixels_first(grad_maps).scatter_add_(1, _pixels_first(places), _pixels_first(chosen))
        return grad_maps, *parameters, None, None, None, None


def _pixels_first(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _per_channel(
    maps: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor
) -> Tensor:
    """The four per channel of the maps, in the dtype of the statistics: [4, channels]."""
    if scale.dtype != mean.dtype:
        scale, shift = scale.to(mean.dtype), shift.to(mean.dtype)
    return _broadcast(torch.stack((mean, variance, scale, shift)), maps.shape[1] // len(mean))


def _affine(maps: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(maps - mean) / sqrt(variance + eps) * scale + shift, all per channel."""
    return F.batch_norm(maps, mean, variance, scale, shift, training=False, eps=EPSILON)


def _through_statistics(
    grad: Tensor, read: Tensor, maps: Tensor, vectors: Tensor, gather: Tensor | None, ctx
) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """(gradients of scale and shift, the part of the maps' gradient through their statistics, the
    factor [channels] of the rest).

    `grad` belongs to the values `read`: all of the maps, or those that a maximum has chosen. The
    maps' gradient is scale / sqrt(variance) x (grad - mean of grad - normalised maps x mean of grad
    x normalised maps), means over the field: one affine pass over the maps, to which the caller
    adds one over grad.
    """
    mean, variance, scale, _ = vectors
    inverse = (variance + EPSILON).rsqrt()
    factor = inverse * scale
    # Per channel the sums of grad x (normalised maps) and of grad, then over the field; the weight
    # does not enter, but without one CUDA sums nothing.
    _, along, total = torch.ops.aten.native_batch_norm_backward(
        grad,
        read,
        torch.ones_like(mean),
        mean,
        inverse,
        mean,
        inverse,
        True,
        EPSILON,
        [False, True, True],
    )
    sums = torch.stack((along, total))
    if gather is not None:
        sums = sums @ gather.to(sums.dtype)
    parameters = list(sums[:, :: ctx.order].to(ctx.dtype).unbind())
    if not ctx.needs_input_grad[0]:
        return parameters, None, factor
    along, total = sums * (factor * (-maps.shape[1] / (ctx.order * maps.numel())))
    return parameters, _affine(maps, mean, variance, along, total), factor
