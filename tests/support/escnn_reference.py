"""The same networks built from escnn's own modules: the reference of the tests and of the
benchmarks, as a user writes them.
"""

import torch
from escnn import nn as enn
from torch import nn

from trainers.networks.baking import gspace, isolate_escnn, repair_escnn

repair_escnn()  # escnn 1.0.11 cannot build dihedral groups with scikit-learn 1.9
isolate_escnn()  # nor share bases between machines


class EscnnNetwork(nn.Module):
    """`architecture` from R2Conv, InnerBatchNorm, ReLU, pooling and RestrictionModule, with the
    same head.
    """

    def __init__(self, architecture, channels, classes, initialize=False, recompute=True):
        super().__init__()
        # recompute: escnn shares buffers between networks
        self.options = {"initialize": initialize, "recompute": recompute}
        self.architecture = architecture
        space = gspace(architecture.stages[0].group)
        self.image_type = maps = enn.FieldType(space, channels * [space.trivial_repr])
        group = architecture.stages[0].group
        self.stages = nn.ModuleList()
        for stage in architecture.stages:
            parts = []
            if stage.group != group:
                parts.append(enn.RestrictionModule(maps, restriction_id(group, stage.group)))
                maps, group = parts[-1].out_type, stage.group
            for repeat in range(stage.repeats):
                parts.append(self.block(stage, maps, stage.stride if repeat == 0 else 1))
                maps = parts[-1].out_type
            if stage.subsampling is not None:
                parts.append(self.step(stage, maps))
            self.stages.append(nn.Sequential(*parts))
        self.order = group.order
        self.linear = nn.Linear(maps.size if architecture.head == "none" else len(maps), classes)

    def convolution(self, stage, maps, stride=1, kernel=None, padding=None, relu=True):
        out = enn.FieldType(maps.gspace, stage.fields * [maps.gspace.regular_repr])
        kernel, padding = (stage.kernel, stage.padding[0]) if kernel is None else (kernel, padding)
        layers = [
            enn.R2Conv(
                maps,
                out,
                kernel,
                padding=padding,
                stride=stride,
                padding_mode=stage.padding_mode,
                bias=False,
                **self.options,
            ),
            enn.InnerBatchNorm(out),
        ]
        return enn.SequentialModule(*layers, *([enn.ReLU(out)] if relu else []))

    def block(self, stage, maps, stride):
        first = self.convolution(stage, maps, stride)
        if not stage.residual:
            return first
        second = self.convolution(stage, first.out_type, relu=False)
        skip = None
        if stride > 1 or maps != second.out_type:
            skip = self.convolution(stage, maps, stride, kernel=1, padding=0, relu=False)
        return Residual(first, second, skip)

    def step(self, stage, maps):
        step = stage.subsampling
        padding = step.padding[0]
        if step.kind == "max":
            return enn.PointwiseMaxPool(maps, step.kernel, step.stride, padding)
        if step.kind == "avg":
            return enn.PointwiseAvgPool(maps, step.kernel, step.stride, padding)
        if step.kind == "blur":
            return enn.PointwiseAvgPoolAntialiased(maps, 0.66, step.stride)
        if step.kind == "blurmax":
            # PointwiseMaxPoolAntialiased itself pads its blur by the padding of its maximum once
            # more.
            return enn.SequentialModule(
                enn.PointwiseMaxPool(maps, 3, 1, 1),
                enn.PointwiseAvgPoolAntialiased(maps, 0.6, step.stride),
            )
        if step.kind == "conv":
            return self.convolution(stage, maps, step.stride, step.kernel, padding)
        raise NotImplementedError(step.kind)

    def forward(self, images):
        return self.forward_with_stages(images)[0]

    def forward_with_stages(self, images):
        maps, outputs = self.image_type(images), []
        for stage in self.stages:
            maps = stage(maps)
            outputs.append(maps.tensor)
        features = maps.tensor.mean((2, 3))
        # GroupPooling would return float32 for float64 maps
        if self.architecture.head != "none":
            fields = features.unflatten(1, (-1, self.order))
            features = fields.amax(2) if self.architecture.head == "group_max" else fields.mean(2)
        return self.linear(features), tuple(outputs)

    def parts(self):
        """(R2Conv, batch norm) of every convolution, in the order of the forward pass."""
        modules = list(self.modules())
        return list(
            zip(
                [m for m in modules if isinstance(m, enn.R2Conv)],
                [m for m in modules if isinstance(m, nn.BatchNorm3d)],
            )
        )


class Residual(nn.Module):
    def __init__(self, first, second, skip):
        super().__init__()
        self.first, self.second, self.skip = first, second, skip
        self.relu = enn.ReLU(second.out_type)
        self.out_type = second.out_type

    def forward(self, maps):
        return self.relu(
            self.second(self.first(maps)) + (maps if self.skip is None else self.skip(maps))
        )


def restriction_id(group, subgroup):
    """escnn's name of `subgroup` within `group`."""
    if not group.mirror:
        return subgroup.rotations
    if group.rotations == 1:
        return 1
    return (0 if subgroup.mirror else None, subgroup.rotations)


def block_basis(convolution):
    """The sampled basis [size, out, in, k, k] of an R2Conv between fields of one kind each."""
    (block,) = (
        m
        for name, m in convolution.basisexpansion.named_children()
        if name.startswith("block_expansion")
    )
    kernel = convolution.kernel_size
    return block.sampled_basis.unflatten(-1, (kernel, kernel))


@torch.no_grad()
def copy_to_escnn(network, reference):
    """Give `reference` the weights of `network`, whose basis must be escnn's own, and randomise
    both norms alike.
    """
    for ours, (convolution, norm) in zip(network.convolutions, reference.parts(), strict=True):
        convolution.weights.copy_(ours.filters.flatten())
        norm.weight.copy_(ours.norm.weight)
        norm.bias.copy_(ours.norm.bias)
        norm.running_mean.copy_(ours.norm.running_mean)
        norm.running_var.copy_(ours.norm.running_var)
    blurs = [m for m in network.modules() if hasattr(m, "window")]
    for ours, theirs in zip(
        blurs,
        [m for m in reference.modules() if isinstance(m, enn.PointwiseAvgPoolAntialiased)],
        strict=True,
    ):
        assert (ours.window - theirs.filter[:1]).abs().max() < 1e-7
        # escnn computes it in float32
        theirs.filter.copy_(ours.window.expand_as(theirs.filter))
    reference.linear.load_state_dict(network.linear.state_dict())
