"""Audits of what people write beside convolutions and pools: a claim on every element, and the
float64 measurement says the same.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainers.instruments.audit.audit import audit


class Written(nn.Module):
    """Maps of 4 channels through a function of them, then their means unless it returns vectors."""

    def __init__(self, function, size=8):
        super().__init__()
        self.function = function
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.row, self.across = nn.Conv1d(1, 1, 3, padding=1), nn.Linear(4, 12)
        self.bias = nn.Parameter(torch.randn(1, 1, size * size, size * size))

    def forward(self, x):
        found = self.function(self, self.first(x))
        return found.relu().mean((2, 3)) if found.ndim == 4 else found


def halves(join):
    return lambda _, y: join(*y.chunk(2, 1))


def rolled(y):
    return y.roll(1, 2)


def attended(m, y, mask):
    q, k, v = m.across(y.flatten(2).mT)[:, None].chunk(3, -1)
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return found[:, 0].mT.reshape(y.shape)


def neighbours(size):
    place = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    return (place[:, None] - place[None]).abs().sum(-1) < 2


QUARTERS, ALL = "e r90 r180 r270", "e r90 r180 r270 m mr90 mr180 mr270"
TALL = "e r180 m mr180"
KINDS = {
    # two halves of the channels are not the same, in whichever order windows show them
    "halves added": (halves(lambda a, b: a + rolled(b)), "e m"),
    "halves multiplied": (halves(lambda a, b: a * rolled(b)), "e m"),
    "larger of halves": (halves(lambda a, b: torch.maximum(a, rolled(b))), "e m"),
    "halves beside": (halves(lambda a, b: a[..., 1:] + b[..., :-1]), "e mr180"),
    "halves padded": (halves(lambda a, b: F.pad(a, (0, 1)) * F.pad(b, (1, 0))), "e mr180"),
    "single channels": (lambda _, y: y[:, :1] + rolled(y[:, 1:2]), "e m"),
    "exchanged channels": (lambda _, y: y[:, [1, 0, 3, 2]] + y.rot90(1, (2, 3)), QUARTERS),
    # the same channels are, wherever they are joined
    "joined in space": (lambda _, y: torch.cat([y, y.flip(3)], 3), ALL),
    "added to itself": (lambda _, y: y + y.rot90(1, (2, 3)), ALL),
    "differences": (lambda _, y: (y[..., 1:] - y[..., :-1]).abs(), TALL),
    "a row and a column": (lambda _, y: y + y.mT, "e r180 mr90 mr270"),
    "corners": (lambda _, y: y[..., 0, 0] + y[..., 0, -1] + y[..., -1, 0] + y[..., -1, -1], ALL),
    "written into": (lambda _, y: y.clone().mul_(2.0)[:, :1].add_(1.0) * y, ALL),
    # resizing that looks at more positions where it shrinks
    "bicubic": (lambda _, y: F.interpolate(y, size=5, mode="bicubic", antialias=True), ALL),
    "bilinear": (lambda _, y: F.interpolate(y, size=5, mode="bilinear", antialias=True), ALL),
    "sides": (lambda _, y: F.interpolate(y, size=(5, 7), mode="bicubic", antialias=True), TALL),
    # attention whose scores are added to, or left out
    "any bias": (lambda m, y: attended(m, y, m.bias), "e"),
    "near positions": (lambda m, y: attended(m, y, neighbours(8)), ALL),
    "before": (lambda m, y: attended(m, y, torch.ones(64, 64).tril().bool()), "e"),
    # over one axis: of channels, and of positions
    "channels in a row": (lambda m, y: y * m.row(y.mean((2, 3))[:, None]).mT[..., None], ALL),
    "columns": (lambda m, y: y[:, :1] * m.row(y[:, :1].mean(2)).unsqueeze(2), "e mr180"),
    "running sums": (lambda _, y: y.cumsum(3), "e mr180"),
    "median": (lambda _, y: y.flatten(2).median(-1).values, ALL),
    "slopes": (lambda _, y: F.rrelu(y), ALL),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_claims_are_what_is_measured(kind):
    torch.manual_seed(0)
    function, kept = KINDS[kind]
    found = audit(Written(function), 8, sizes=False)
    assert not found.unread and {f.agrees for f in found.findings} == {True}
    assert " ".join(map(str, found.surviving)) == kept
