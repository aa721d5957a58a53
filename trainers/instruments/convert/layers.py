"""The layers of a converted network, in nothing but torch: this file stands alone and may be
copied.

Channels of feature maps are regular fields, field-major: channel f * |G| + g is group element g of
field f. A group convolution has one parameter for every entry of the row of the identity,

    weight[f, g, c, h] = parameters[f, c, g^-1 h] moved by g,

which the index `sources` [|G|, incoming elements x kernel pixels] gathers.
"""

import torch
from torch import nn


class GroupConv2d(nn.Conv2d):
    """A convolution from `fields_in` to `fields` regular fields, or from an image's channels.

    `weight` are parameters [fields, fields in / groups, incoming, height, width], `incoming` being
    |G| or, of an image, 1; `bias` [fields]. Options are those of torch's Conv2d.
    """

    def __init__(self, fields_in, fields, kernel_size, sources, incoming, bias=True, **options):
        order = len(sources)
        super().__init__(fields_in * incoming, fields * order, kernel_size, bias=False, **options)
        into = fields_in // self.groups
        self.order, self.incoming = order, incoming
        self.weight = nn.Parameter(torch.zeros(fields, into, incoming, *self.kernel_size))
        if bias:
            self.bias = nn.Parameter(torch.zeros(fields))
        self.sources: torch.Tensor
        self.register_buffer("sources", sources, persistent=False)

    def expanded(self):
        """(weight, bias) of the ordinary convolution that this is."""
        fields, into, *_ = self.weight.shape
        rows = self.weight.flatten(2)[:, :, self.sources]
        rows = rows.view(fields, into, self.order, self.incoming, *self.kernel_size)
        weight = rows.transpose(1, 2).reshape(
            fields * self.order, into * self.incoming, *self.kernel_size
        )
        bias = None if self.bias is None else self.bias.repeat_interleave(self.order)
        return weight, bias

    def forward(self, input):
        return self._conv_forward(input, *self.expanded())


class OfFields(nn.Module):
    """A batch norm [fields] whose statistics are those of all elements of a field together."""

    def __init__(self, norm, order):
        super().__init__()
        self.norm, self.order = norm, order

    def forward(self, maps):
        fields = maps.unflatten(1, (-1, self.order)).flatten(2, 3)
        return self.norm(fields).reshape(maps.shape)


class OnEachElement(nn.Module):
    """A module that mixes channels, on the fields' values at each group element alone."""

    def __init__(self, module, order):
        super().__init__()
        self.module, self.order = module, order

    def forward(self, maps):
        fields = maps.unflatten(1, (-1, self.order)).transpose(1, 2)
        return self.module(fields.flatten(0, 1)).unflatten(0, (-1, self.order)).transpose(
            1, 2
        ).flatten(1, 2)  # fmt: skip
