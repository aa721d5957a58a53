"""The tables of a convolution in the Fourier basis (`trainers.networks.kernels.fourier`): which
entries of a weight form the spectra of a pair of fields, and what `fourier.c` needs of a layer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor

from searchspace.groups import Element, Group
from trainers.actions import act
from trainers.networks.filters import restricted_order

GROUP_CODES = {"C1": 0, "C2": 1, "D1": 1, "D2": 2, "C4": 3, "D4": 4}  # as fourier.c numbers them


class LayerStruct(ctypes.Structure):
    """`struct layer` of fourier.h: sizes in pixels and fields, and the addresses of the tables."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                "kind",
                "order",
                "fields_in",
                "fields_out",
                "height",
                "width",
                "kernel",
                "stride",
                "padding",
                "dilation",
            )
        ),
        *((name, ctypes.c_void_p) for name in ("channels_in", "channels_out", "taps", "bias")),
    ]


class Transform:
    """The tables that all convolutions of one kernel size between fields of `source` and of `group`
    share: where the entries of their spectra come from, and the matrix of the representations.
    """

    def __init__(
        self, group: Group, source: Group, channels_in: int, channels_out: int, kernel: int
    ) -> None:
        self.grid, self.kernel = group.grid, kernel
        self.channels_in = _channels(source, self.grid, channels_in)
        self.channels_out = _channels(group, self.grid, channels_out)
        self.taps = _taps(self.grid, kernel)
        self.matrix, dimensions = _matrix(self.grid)
        fields_in, fields_out = len(self.channels_in), len(self.channels_out)
        shape = (channels_out, channels_in, kernel**2)
        self.entries = _entries(shape, self.channels_out[:, :1], self.channels_in, self.taps)
        self.order = _order(fields_out, fields_in, kernel**2, dimensions)
        self.inverse_order = torch.argsort(self.order).to(torch.int32)
        # The gradient of the maps is a convolution with the filters turned by 180 degrees, from
        # outgoing to incoming fields.
        backward = _entries(shape, self.channels_out, self.channels_in[:, :1], self.taps.flip(1))
        by_field = backward.view(fields_out, fields_in, kernel**2, self.grid.order)
        self.backward_entries = by_field.transpose(0, 1).flatten()
        self.backward_order = _order(fields_in, fields_out, kernel**2, dimensions)

    def spectra(self, weight: Tensor, backward: bool = False) -> Tensor:
        """c_s(r) of all pairs of fields, each times d / |H|, from a weight [channels out, channels
        in, k, k]: flat, block by block.

        `backward`: those of the convolution that gives the gradient of the maps.
        """
        entries, order = (
            (self.backward_entries, self.backward_order) if backward else (self.entries, self.order)
        )
        rows = weight.reshape(-1).index_select(0, entries).view(-1, self.grid.order)
        return (rows @ self.matrix).view(-1).index_select(0, order)

    def weight_gradient(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of a weight of `shape` from that of its spectra: all of it at the rows that
        determine the others.
        """
        rows = (
            gradient.index_select(0, self.inverse_order).view(-1, self.matrix.shape[1])
            @ self.matrix.t()
        )
        return (
            gradient.new_zeros(shape.numel())
            .index_copy_(0, self.entries.long(), rows.view(-1))
            .view(shape)
        )

    def layer(
        self,
        maps: Tensor,
        stride: int,
        padding: int,
        dilation: int,
        backward: bool = False,
        bias: Tensor | None = None,
    ) -> LayerStruct:
        """The compiled code's description of a convolution of `maps`; it holds addresses, so the
        tables and `bias` must outlive it.
        """
        fields = (self.channels_in, self.channels_out)
        if backward:
            fields = fields[::-1]
        return LayerStruct(
            GROUP_CODES[str(self.grid)],
            self.grid.order,
            *map(len, fields),
            *maps.shape[2:],
            self.kernel,
            stride,
            padding,
            dilation,
            *(table.data_ptr() for table in (*fields, self.taps)),
            None if bias is None else bias.data_ptr(),
        )


@lru_cache(maxsize=256)
def transform_of(
    group: Group, source: Group, channels_in: int, channels_out: int, kernel: int
) -> Transform:
    """The `Transform` of these fields and sizes, computed once in a process."""
    return Transform(group, source, channels_in, channels_out, kernel)


def _representations(group: Group) -> list[tuple[int, Callable[[Element], Tensor]]]:
    """(dimension, matrices) of the irreducible representations of a group on the grid, in the order
    of fourier.h; over the reals.
    """
    signs: list[Callable[[Element], float]] = [lambda e: 1.0]
    if group.mirror:
        signs.append(lambda e: -1.0 if e.mirror else 1.0)
    turns: list[Callable[[Element], float]] = [lambda e: 1.0]
    if group.rotations > 1:  # a half turn of two, a quarter turn of four: -1
        turns.append(lambda e: (-1.0) ** int(e.turn * group.rotations))
    representations = [(1, _scalar(turn, sign)) for turn in turns for sign in signs]
    if group.rotations == 4:
        representations.append((2, _plane))
    return representations


def _scalar(
    turn: Callable[[Element], float], sign: Callable[[Element], float]
) -> Callable[[Element], Tensor]:
    """The representation of dimension 1 that multiplies two characters."""
    return lambda element: torch.tensor([[turn(element) * sign(element)]])


def _plane(element: Element) -> Tensor:
    """The element as a matrix of the plane: a mirror of its second axis, then a rotation."""
    turn = torch.linalg.matrix_power(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), element.quarter_turns)
    return turn * torch.tensor([1.0, -1.0]) if element.mirror else turn


@cache
def _matrix(group: Group) -> tuple[Tensor, tuple[int, ...]]:
    """(the entries of all representations times d / |H| [|H|, sum of d^2], their dimensions d)."""
    representations = _representations(group)
    columns = [
        torch.stack([matrices(e) for e in group.elements]).flatten(1) * dimension / group.order
        for dimension, matrices in representations
    ]
    return torch.cat(columns, 1), tuple(dimension for dimension, _ in representations)


@cache
def _taps(group: Group, kernel: int) -> Tensor:
    """[|H|, k x k]: the tap to which an element moves a tap."""
    taps = torch.arange(kernel * kernel).view(1, 1, kernel, kernel)
    return torch.stack(
        [torch.argsort(act(taps, element).flatten()) for element in group.elements]
    ).to(torch.int32)


def _channels(group: Group, subgroup: Group, channels: int) -> Tensor:
    """[fields, |H|]: the channels of fields of `group`, seen as fields of the subgroup."""
    starts = torch.arange(0, channels, group.order)[:, None]
    order = torch.tensor(restricted_order(group, subgroup))
    return (starts + order).view(-1, subgroup.order).to(torch.int32)


def _entries(shape: tuple[int, int, int], rows: Tensor, columns: Tensor, taps: Tensor) -> Tensor:
    """Where c[s, h] of all pairs of fields lies in a weight of that shape: flat [fields out, fields
    in, k x k, |H|], int32.

    `rows` and `columns` [fields, 1 or |H|] are the channels of the elements h, or of the identity.
    """
    _, channels_in, size = shape
    pairs = (rows[:, None, None, :] * channels_in + columns[None, :, None, :]) * size
    return (pairs + taps.t()[None, None]).flatten().to(torch.int32)


def _order(fields_out: int, fields_in: int, size: int, dimensions: tuple[int, ...]) -> Tensor:
    """Where [block][field out, row, field in, tap, column] lies in [field out, field in, tap,
    entry], flat, int32.
    """
    entries = sum(d * d for d in dimensions)
    places = torch.arange(fields_out * fields_in * size * entries).view(
        fields_out, fields_in, size, entries
    )
    parts = places.split([d * d for d in dimensions], -1)
    return torch.cat(
        [
            part.unflatten(-1, (d, d)).permute(0, 3, 1, 2, 4).flatten()
            for part, d in zip(parts, dimensions)
        ]
    ).to(torch.int32)
