"""Folded networks: the same outputs from plain torch modules, rebuilt from a description by a file
that needs only torch.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_networks import images, random_architecture, relative, trained
from torch import nn

from searchspace.architecture import Architecture
from searchspace.cost import cost
from trainers.networks import plain
from trainers.networks.fold import description, fold
from trainers.networks.plain import PlainNetwork, Subsample


def test_equals_the_network():
    generator = random.Random(1)
    for number in range(60):
        architecture = random_architecture(generator)
        network = trained(architecture, seed=number).eval()
        x = images(architecture)
        folded = fold(network)
        logits, maps = network.forward_with_stages(x)
        folded_logits, folded_maps = folded.forward_with_stages(x)
        assert relative(folded_logits, logits) < 1e-10, architecture
        for a, b in zip(folded_maps, maps, strict=True):
            assert (a - b).abs().max() <= 1e-10 * b.abs().max(), architecture
        assert (
            sum(p.numel() for p in folded.parameters()) == cost(architecture, 2, 5).expanded_params
        )
        single = fold(network.float())
        assert (single(x.float()) - logits).abs().max() < 1e-5 * max(1, logits.abs().max())
        assert torch.equal(single(x.float()), single.forward_with_stages(x.float())[0])


def test_is_made_of_plain_modules_and_frozen():
    folded = fold(
        trained(Architecture.parse("29px: 3k3@D4, 3k3p1reflect, 3k3r max3/2, 3k3s2r@C4 blur/2"))
    )
    leaves = {type(m) for m in folded.modules() if not list(m.children())}
    assert leaves == {nn.Conv2d, nn.Linear, nn.Identity, plain.Pad, plain.Subsample}
    assert not folded.training and not any(p.requires_grad for p in folded.parameters())


def test_computes_in_channels_last():
    folded = fold(
        trained(Architecture.parse("28px: 3k3@D4, 3k3p1reflect max2/2, 3k3 blur/2, 3k3r"))
    ).float()
    for maps in folded.forward_with_stages(torch.randn(2, 2, 28, 28))[1]:
        assert maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()


def test_leaves_the_network_and_the_generator_alone():
    network = trained(Architecture.parse("12px: 3k3@C4")).train()
    before, state = (
        {k: v.clone() for k, v in network.state_dict().items()},
        torch.random.get_rng_state(),
    )
    fold(network).head.linear.weight.zero_()
    assert network.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    "text",
    [
        "20px: 3k3@D4 max3/2p0:1, 3k3 conv3/2p1, 2k3s2x2r head=group_mean",
        "20px resize17: 3k3@C8 blurmax/2, 3k5p2circular adaptive2 head=none",
    ],
)
def test_loads_elsewhere_with_torch_alone(text, tmp_path):
    """Copied next to a state and a JSON file, `plain.py` runs in a process that cannot import this
    project.
    """
    architecture = Architecture.parse(text)
    network = trained(architecture).float().eval()
    x = images(architecture, dtype=torch.float32)
    torch.save(
        {"state": fold(network).state_dict(), "x": x, "logits": network(x).detach()},
        tmp_path / "network.pt",
    )
    (tmp_path / "network.json").write_text(json.dumps(description(network)))
    (tmp_path / "network.py").write_text(Path(plain.__file__).read_text())
    code = (
        "import json, sys, torch, network as n; saved = torch.load('network.pt'); net = "
        "n.PlainNetwork(json.load(open('network.json')));"
        "net.load_state_dict(saved['state']); print((net.eval()(saved['x']) - "
        "saved['logits']).abs().max().item());"
        "assert not {'trainers', 'searchspace', 'escnn', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


def test_exports_and_compiles_as_one_graph():
    architecture = Architecture.parse(
        "20px resize17: 3k3@D4 max3/2p0:1, 3k3s2r blur/2, 3k3 adaptive2"
    )
    folded, x = fold(trained(architecture).float()), images(architecture, dtype=torch.float32)
    program = torch.export.export(folded, (x,))
    assert torch.allclose(program.module()(x), folded(x), atol=1e-6)


def test_a_wrong_state_is_refused():
    a, b = (fold(trained(Architecture.parse(t))) for t in ("12px: 3k3@C4", "12px: 4k3@C4"))
    with pytest.raises(RuntimeError):
        a.load_state_dict(b.state_dict())
    assert isinstance(a, PlainNetwork)


@pytest.mark.parametrize("size", [(28, 28), (27, 29), (5, 8)])
def test_halving_by_maxima_is_max_pooling_bit_for_bit(size):
    """Without gradients 2x2 pools are computed by comparing rows and columns; with them by torch's
    pooling.
    """
    step = Subsample({"kind": "max", "kernel": 2, "stride": 2, "padding": [0, 0], "ceil": False})
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = torch.randn(3, 6, *size).contiguous(memory_format=layout)
        with torch.no_grad():
            halved = step(maps)
        assert torch.equal(halved, step(maps)) and torch.equal(
            halved, torch.nn.functional.max_pool2d(maps, 2)
        )
        assert halved.is_contiguous(memory_format=layout)
