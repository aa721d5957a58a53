"""The average of a convolution's weight over a group: its projection to the weights that are
equivariant by construction.

An element g moves the weight between regular fields as the convention of
`trainers.networks.filters` says,

    (g W)[g @ o, g @ h] = W[o, h] moved by g,

and P_G W is the mean of g W over the group. The moves only permute entries, so P_G is the
orthogonal projection to the weights that no element changes: those of group convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from searchspace.groups import Element, Group
from trainers.actions import act, permutation


def project(
    weight: Tensor, source: Group | None, fields: Group, group: Group | None = None
) -> Tensor:
    """P_G W: the equivariant weight nearest to `weight` [channels out, channels in, k, k].

    Channels out are regular fields of `fields`, channels in of `source` (None: an image's
    channels), field-major; the average is over `group`, a subgroup of both (None: `fields`). Raises
    ValueError where the channels are not whole fields or an element is not a quarter turn or flip.
    """
    group = fields if group is None else group
    moved = torch.zeros_like(weight)
    for element in _on_grid(group):
        rows = _channels(len(weight), fields, element)
        columns = _channels(weight.shape[1], source, element)
        moved += move(weight, element, rows, columns)
    return moved / group.order


def move(
    weight: Tensor, element: Element, rows: Sequence[int] | None, columns: Sequence[int] | None
) -> Tensor:
    """g W: the weight whose kernels `element` moves; entry n of `rows` and of `columns` is the
    channel that it moves to n. None: it leaves the channels in place.
    """
    moved = act(weight, element)
    if rows is not None:
        moved = moved.index_select(0, torch.tensor(rows, device=weight.device))
    if columns is not None:
        moved = moved.index_select(1, torch.tensor(columns, device=weight.device))
    return moved


def distance(
    weight: Tensor, source: Group | None, fields: Group, group: Group | None = None
) -> float:
    """How far a weight is from the equivariant ones: ||W - P_G W|| / ||W||, 0 to 1; 0 for a weight
    that is zero. Arguments and errors are those of `project`.
    """
    weight = weight.detach().double()
    norm = float(weight.norm())
    return float((weight - project(weight, source, fields, group)).norm()) / norm if norm else 0.0


def _on_grid(group: Group) -> tuple[Element, ...]:
    if not group.on_grid:
        raise ValueError(
            f"weights cannot be averaged over {group}, which moves pixels off their grid; choose "
            f"its subgroup {group.grid}, or another of C1, C2, C4, D1, D2, D4"
        )
    return group.elements


def _channels(count: int, fields: Group | None, element: Element) -> list[int] | None:
    """For each channel of regular fields of `fields`, the one that `element` moves there."""
    if fields is None:
        return None
    if count % fields.order:
        raise ValueError(
            f"{count} channels are not a whole number of fields of {fields}, whose fields have "
            f"{fields.order} channels; name the group of the stage"
        )
    within = permutation(fields, element.inverse)
    return [start + n for start in range(0, count, fields.order) for n in within]
