"""Steerable twins of networks that are not ours: they keep what their verdict says, measured in
float64, start as the orbit average of the original, and are torch's own layers once expanded.
"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import stochastic_depth

from searchspace import Architecture, Group, verdict
from trainers import build, convert
from trainers.actions import act
from trainers.networks.orbit import orbit_average


def resnet(block=BasicBlock, width=2, channels=3, classes=5):
    """torchvision's ResNet with few channels."""
    torch.manual_seed(0)
    made = ResNet.__new__(ResNet)
    nn.Module.__init__(made)
    made._norm_layer, made.inplanes, made.dilation = nn.BatchNorm2d, width, 1
    made.groups, made.base_width = 1, 64
    made.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
    made.bn1, made.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    made.maxpool = nn.MaxPool2d(3, 2, 1)
    for number in range(4):
        planes, stride = width * (1 + number // 2), 1 + (number > 0)
        setattr(made, f"layer{number + 1}", made._make_layer(block, planes, 1, stride=stride))
    made.avgpool = nn.AdaptiveAvgPool2d(1)
    made.fc = nn.Linear(2 * width * block.expansion, classes)
    return trained(made)


def trained(module):
    """With batch norms that are not the identity, as after a training."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            for values in (norm.bias, norm.running_mean):
                nn.init.uniform_(values, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return module.eval()


def lenet(kernel=3, padding=1, **first):
    """Convolutions, a flattened map, and two linear layers, without batch norm."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, kernel, padding=padding, **first), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(6 * 9, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, dilation, group norm, concatenation, a gate."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        self.depthwise = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.norm, self.slope = nn.GroupNorm(4, 8), nn.PReLU(8)
        self.gate, self.last = nn.Conv2d(12, 12, 1), nn.Linear(12, 3)

    def forward(self, x):
        x = self.first(x)
        x = nn.functional.silu(self.depthwise(x)) + x
        y = self.slope(self.norm(self.grouped(x)))
        x = torch.cat([x, y], 1)
        x = stochastic_depth(x, 0.1, "row", self.training)
        x = x * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(x, 1)))
        x = nn.functional.dropout(x.mean([2, 3]), 0.1, self.training)
        return torch.log_softmax(self.last(x), 1)


def start(module, converted, size, channels):
    """How far the twin is from the orbit average of the original, relative to its spread."""
    images = torch.randn(4, channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = orbit_average(copy.deepcopy(module).double(), converted.group)(images)
        found = copy.deepcopy(converted.network).double()(images)
        plain = converted.plain().double()(images)
    assert torch.allclose(plain, found, atol=1e-10)
    return float((found - expected).abs().max() / expected.std())


def require_measured(converted):
    """Every element has a claim, and the measurement says the same."""
    assert [f.agrees for f in converted.verdict.findings] == [True] * converted.group.order


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("group, size, kept", [("C4", 33, "C4"), ("D4", 32, "D1")])
def test_a_twin_of_a_resnet_keeps_what_its_verdict_says(block, group, size, kept):
    module = resnet(block)
    converted = convert(module, group, size)
    require_measured(converted)
    assert converted.verdict.surviving_group == kept
    assert converted.verdict.exact or 33 in converted.verdict.exact_sizes
    assert (converted.text is None) == (block is Bottleneck)
    if converted.text is not None:
        own = verdict(Architecture.parse(converted.text), converted.group)
        assert own.surviving == converted.verdict.surviving
    assert (start(module, converted, size, 3) < 1e-9) == (size == 33)
    assert not [m for m in converted.plain().modules() if "layers" in type(m).__module__]


@pytest.mark.parametrize("make, channels", [(lenet, 1), (Mixed, 3)])
def test_other_networks_start_as_their_orbit_average(make, channels):
    module = make().eval()
    converted = convert(module, "D4", 12, channels)
    require_measured(converted)
    assert converted.verdict.exact and converted.text is None and converted.why_no_text
    if make is lenet:  # log-probabilities are not averaged: logits are
        assert start(module, converted, 12, channels) < 1e-9


def test_the_text_form_is_the_same_network_with_the_same_verdict():
    converted = convert(resnet(), "D4", 33)
    assert converted.text is not None
    found = Architecture.parse(converted.text)
    assert verdict(found, Group.parse("D4")).surviving == converted.verdict.surviving
    network = build(found, channels=3, classes=5)
    assert sum(p.numel() for p in network.parameters()) == converted.after.params
    assert converted.text == (
        "33px: 2k7s2@D4 max3/2p1, 2k3r, 2k3s2r, 4k3s2r, 4k3s2r head=group_mean"
    )


@pytest.mark.parametrize("width", ["params", "macs"])
def test_a_width_matches_the_cost_with_the_strongest_channels(width):
    module = resnet(width=8)
    converted = convert(module, "C2", 33, width=width)
    before, after = getattr(converted.before, width), getattr(converted.after, width)
    assert 0.9 < after / before < 1.1
    require_measured(converted)
    # the filters are the original's, in their order, and the strongest of those alone in a space
    inner = module.layer4[0].conv1.weight.detach()
    own = module.layer4[0].bn1.weight.abs() * inner.flatten(1).norm(dim=1)
    kept = converted.network.get_submodule("layer4.0.bn1.norm").weight
    strongest = own.argsort(descending=True)[: len(kept)].sort().values
    assert len(kept) < len(inner)
    assert torch.equal(kept, module.layer4[0].bn1.weight[strongest])


def test_a_twin_trains_and_stays_exact_and_can_be_kept():
    converted = convert(resnet(), "C4", 33)
    network = converted.network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images = torch.randn(4, 3, 33, 33)
    before = network(images)
    nn.functional.cross_entropy(before, torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    # what had been zero on the other group elements takes part
    assert bool(network.layer1.get_submodule("0.conv1").weight[:, :, 1:].abs().sum() > 0)
    network = pickle.loads(pickle.dumps(network)).eval().double()
    images = images.double()
    turned = act(images, converted.group.elements[1])
    with torch.no_grad():
        assert torch.allclose(network(images), network(turned), atol=1e-10)
    exported = torch.export.export(converted.plain(), (torch.randn(2, 3, 33, 33),))
    assert exported.module()(torch.zeros(2, 3, 33, 33)).shape == (2, 5)


def test_a_twin_of_a_network_of_maps_turns_its_maps():
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    converted = convert(module, "D4", (6, 6), 1)
    require_measured(converted)
    assert not converted.verdict.invariant and converted.verdict.exact


def test_a_repair_resizes_the_images_to_an_exact_size():
    converted = convert(resnet(), "D4", 32, repair=True)
    require_measured(converted)
    assert converted.verdict.exact and converted.repaired_size == 33
    assert "resizes" in converted.description()
    assert converted.as_dict()["twin"]["resizes_to"] == 33


class Two(nn.Module):
    def forward(self, image, mask):
        return image * mask


class Named(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.conv, self.result = nn.Conv2d(3, 4, 3), result

    def forward(self, x):
        return self.result(self.conv(x))


@pytest.mark.parametrize(
    "module, group, options, message",
    [
        (Two(), "C4", {}, r"2 inputs \(image, mask\); wrap"),
        (Named(lambda x: {"logits": x}), "C4", {}, "returned dict; it must return one tensor"),
        (nn.Sequential(nn.ReLU()), "C4", {}, "no convolution"),
        (nn.ConvTranspose2d(3, 2, 3), "C4", {}, "layer 0 .* converted; .*not transposed"),
        (nn.Conv2d(3, 4, (1, 3)), "C4", {}, "1x3 pixels cannot be turned by r90; .* D1 or D2"),
        (nn.Conv2d(3, 3, 3, groups=3), "C4", {}, "is a grouped convolution of an image"),
        (Named(lambda x: x[:, :2]), "C4", {}, r"getitem.* is not followed"),
        (Named(lambda x: x if x.sum() > 0 else -x), "C4", {}, "control flow"),
        (resnet(), "C8", {}, "C8 has elements .*; give C4"),
        (resnet(), "C4", {"width": "wide"}, "width is 'wide'; choose keep, params, macs"),
        (resnet(channels=1), "C4", {}, r"conv1: .*number of channels that it takes"),
        ("resnet18", "C4", {}, "torch.nn.Module, and this is str"),
        (lenet(kernel=4, padding=0, stride=2), "C4", {"channels": 1}, "12, 12.*that it takes"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_message(module, group, options, message):
    with pytest.raises(ValueError, match=message):
        convert(module, group, 12, **options)
