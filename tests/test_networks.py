"""Networks: equal to escnn's, exactly equivariant where the layout is, with the parameters that
were promised.
"""

import copy
import pickle
import random

import pytest
import torch

import trainers.networks.bases
import trainers.networks.filters
from searchspace.architecture import Architecture
from searchspace.cost import cost
from searchspace.subsampling import BLUR_KERNEL, KINDS, Blur, Subsampling, place
from trainers.actions import act, act_on_fields
from trainers.networks import plain
from trainers.networks.convolution import channels_last
from trainers.networks.networks import build, step_spec
from trainers.networks.plain import Subsample

P4CNN = "12px: 3k3@{}, 4k3p0 max2/2, 2k3, 3k4p0 filters=basis"
RESIDUAL = "13px: 2k3@{}, 2k3x2r, 3k3s2r head=group_mean filters=basis"


def images(architecture, channels=2, batch=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *architecture.size, generator=generator, dtype=dtype)


def trained(architecture, seed=0, channels=2):
    """A float64 network whose norms are not those of a new one."""
    network = build(architecture, channels=channels, classes=5, seed=seed).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for convolution in network.convolutions:
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.3, 0.3),
                ("running_mean", -0.2, 0.2),
                ("running_var", 0.5, 1.5),
            ):
                value = getattr(convolution.norm, name)
                value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
            convolution.norm.weight[1::2] *= -1  # a maximum does not commute with these
    return network


def relative(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.fixture
def raw_bases(monkeypatch):
    """escnn's float32 samples as they are, without making them exact on the grid."""
    monkeypatch.setattr(trainers.networks.bases, "exact_on_grid", lambda kernels, group: kernels)
    trainers.networks.bases.basis.cache_clear()
    yield
    trainers.networks.bases.basis.cache_clear()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "text",
    [P4CNN.format(g) for g in ("C4", "D4", "C8", "D8")]
    + [
        RESIDUAL.format("C4"),
        RESIDUAL.format("D4"),
        "12px: 2k3@D1 avg3/2p1, 2k5p2reflect head=none filters=basis",
        "12px: 2k3@C2 blur/2, 2k3 blurmax/2 filters=basis",
        "12px: 2k3@D2 conv3/2p1, 2k3s2p1circular filters=basis",
        "12px: 3k3@C1, 3k5 filters=basis",
        "13px: 3k3s2@C4 max3/2p1, 4k3 max2/2ceil filters=basis",
        "13px: 2k3@D4 blur/2, 2k3r filters=basis",
    ],
)
# of a grey image, the first convolution is computed otherwise
@pytest.mark.parametrize("channels", [1, 2])
def test_equals_escnn(text, training, channels, raw_bases):
    """With unmodified escnn modules of the same weights: outputs, feature maps, running statistics
    and gradients to 1e-10.
    """
    from support.escnn_reference import EscnnNetwork, copy_to_escnn

    architecture = Architecture.parse(text)
    network = trained(architecture, channels=channels).train(training)
    reference = EscnnNetwork(architecture, channels, 5).double()
    copy_to_escnn(network, reference)
    reference.train(training)  # escnn expands its filters when it goes to eval
    x = images(architecture, channels)
    mine, my_maps = network.forward_with_stages(x)
    theirs, their_maps = reference.forward_with_stages(x)
    assert relative(mine, theirs) < 1e-10
    for a, b in zip(my_maps, their_maps, strict=True):
        assert relative(a, b) < 1e-10
    if not training:
        return
    target = torch.randn(mine.shape, generator=torch.Generator().manual_seed(5), dtype=mine.dtype)
    ((mine - target) ** 2).sum().backward()
    ((theirs - target) ** 2).sum().backward()
    for ours, (convolution, norm) in zip(network.convolutions, reference.parts(), strict=True):
        assert relative(ours.filters.grad.flatten(), convolution.weights.grad) < 1e-10
        assert relative(ours.norm.weight.grad, norm.weight.grad) < 1e-10
        assert relative(ours.norm.bias.grad, norm.bias.grad) < 1e-10
        assert relative(ours.norm.running_var, norm.running_var) < 1e-10
        assert relative(ours.norm.running_mean, norm.running_mean) < 1e-10
    assert relative(network.linear.weight.grad, reference.linear.weight.grad) < 1e-10


@pytest.mark.parametrize(
    "text",
    [
        "12px: 2k3@D4, 3k3@C4 max2/2, 3k3@C2, 2k3@C1 filters=basis",
        "12px: 2k3@D8, 2k3@C8 max2/2, 2k3@C4 filters=basis",
        "12px: 2k3@D4 max2/2, 2k3@D1, 2k4@C1 filters=basis",
    ],
)
def test_restriction_equals_escnn(text):
    """Through RestrictionModule, whose basis spans the same filters in another order and is sampled
    anew, to 1e-6.
    """
    from support.escnn_reference import EscnnNetwork, block_basis, copy_to_escnn

    architecture = Architecture.parse(text)
    network, reference = trained(architecture), EscnnNetwork(architecture, 2, 5).double()
    with torch.no_grad():
        for (convolution, _), ours, weight in zip(
            reference.parts(), network.convolutions, network.weights(), strict=True
        ):
            basis = block_basis(convolution)
            _size, out, into = basis.shape[:3]
            pairs = (
                weight.unflatten(0, (-1, out))
                .unflatten(2, (-1, into))
                .transpose(1, 2)
                .flatten(0, 1)
                .flatten(1)
            )
            found = torch.linalg.lstsq(basis.flatten(1).T, pairs.T).solution
            assert relative(found.T @ basis.flatten(1), pairs) < 1e-6
            assert found.numel() == ours.filters.numel() == convolution.weights.numel()
            convolution.weights.copy_(found.T.flatten())
            ours.filters = torch.nn.Parameter(convolution.weights.view_as(ours.filters).clone())
        copy_to_escnn(network, reference)  # the norms and the linear layer
    network = trained(architecture)
    x = images(architecture)
    mine, _my_maps = network.forward_with_stages(x)
    theirs, _their_maps = reference.forward_with_stages(x)
    assert relative(mine, theirs) < 1e-6
    mine.square().sum().backward()
    theirs.square().sum().backward()
    assert relative(network.linear.weight.grad, reference.linear.weight.grad) < 1e-5
    for ours, (_, norm) in zip(network.convolutions, reference.parts()):
        assert relative(ours.norm.weight.grad, norm.weight.grad) < 1e-5


EXACT = [
    "28px: 3k3@{} max2/2, 2k3 head={}",
    "28px: 2k2p0@{} avg3/2p1, 3k4p0 head={}",
    "29px: 2k3s2@{}, 2k3x2r, 3k3s2r head={}",
    "29px: 2k3@{} conv3/2p1, 2k3d2 blur/2, 2k3p1circular adaptive2 head={}",
    "16px resize21: 2k3@{} blurmax/2, 2k3p2reflect adaptivemax/2 head={}",
]


@pytest.mark.parametrize(
    "filters,groups",
    [("free", ["C2", "C4", "D1", "D2", "D4"]), ("basis", ["C4", "D4", "C8", "D8"])],
)
def test_exact_layouts_are_equivariant(filters, groups):
    """Every stage follows every element of the grid in float64 to 1e-10, in training and in
    evaluation; logits do not move.
    """
    for text, name in ((t, g) for t in EXACT for g in groups):
        if filters == "basis":
            text = text.replace("k2p0", "k5p0").replace("28px: 2k5p0@{}", "29px: 2k5p0@{}")
        architecture = Architecture.parse(text.format(name, "group_max") + f" filters={filters}")
        network, group = trained(architecture), architecture.group
        x = images(architecture)
        for training in (True, False):
            network.train(training)
            logits, maps = network.forward_with_stages(x)
            for element in group.grid.elements:
                moved_logits, moved_maps = network.forward_with_stages(act(x, element))
                assert relative(moved_logits, logits) < 1e-10, (str(architecture), element)
                for a, b in zip(moved_maps, maps, strict=True):
                    assert relative(a, act_on_fields(b, element, group)) < 1e-10, (
                        str(architecture),
                        element,
                    )


@pytest.mark.parametrize(
    "text",
    [
        "28px: 3k3@C4 max3/2, 3k3",
        "29px: 3k3@D4 max2/2, 3k3",
        "28px: 3k3@C4 max2/2, 3k3 head=none",
        "28px: 3k3s2@D4, 3k3",
        "28px: 3k3@C8 blur/2, 3k3s2",
        "28px resize29nearest: 3k3@C4",
        "28px: 3k3p0:1@C4",
        "28px: 3k3@D4, 3k3@C2",
    ],
)
def test_broken_layouts_are_seen(text):
    architecture = Architecture.parse(text)
    network = trained(architecture).eval()
    x = images(architecture)
    logits = network(x)
    quarter = architecture.stages[0].group.grid.elements[1]
    assert ((network(act(x, quarter)) - logits).abs().max() / logits.std(0).max()).item() > 1e-3


def test_head_none_still_has_equivariant_features():
    architecture = Architecture.parse("28px: 3k3@D4 max2/2, 3k3 head=none")
    network, x = trained(architecture), images(architecture)
    maps = network.forward_with_stages(x)[1][-1]
    for element in architecture.group.elements:
        assert (
            relative(
                network.forward_with_stages(act(x, element))[1][-1],
                act_on_fields(maps, element, architecture.group),
            )
            < 1e-10
        )


def random_architecture(generator):
    """A random valid architecture, as text."""
    while True:
        filters = generator.choice(["free", "basis"])
        chain = generator.choice(
            [["D4", "C4", "C2"], ["D4", "D2", "D1"], ["C4", "C1"], ["D2", "C2"], ["C1"]]
            + ([["D8", "C8"]] if filters == "basis" else [])
        )
        stages = []
        for number in range(generator.randint(1, 4)):
            residual = generator.random() < 0.3
            kernel = generator.choice(
                [1, 3, 5] if residual or filters == "basis" else [1, 2, 3, 4, 5]
            )
            stage = f"{generator.randint(1, 4)}k{kernel}" + generator.choice(["", "", "s2"])
            stage += (
                f"x{generator.randint(1, 2)}r"
                if residual
                else generator.choice(["", "p0", "p1:0", "x2", "d2"])
            )
            if number < len(chain):
                stage += f"@{chain[number]}"
            stages.append(
                stage
                + generator.choice(
                    [
                        "",
                        "",
                        " max2/2",
                        " max3/2p0:1ceil",
                        " avg3/2p1",
                        " lp3/2p0:1",
                        " conv3/2p1",
                        " blur/2",
                        " blurmax/2",
                        " adaptive",
                        " adaptivemax3",
                        " resize9",
                        " crop11",
                        " max2/2ceil",
                    ]
                )
            )
        size = generator.choice(["21", "24", "19x26"])
        entry = generator.choice(["", "", " resize20bicubic", " crop22"])
        head = generator.choice(["group_max", "group_mean", "none"])
        try:
            return Architecture.parse(
                f"{size}px{entry}: {', '.join(stages)} head={head} filters={filters}"
            )
        except ValueError:
            pass


def test_parameters_and_sizes_are_those_promised():
    generator = random.Random(0)
    for _ in range(120):
        architecture = random_architecture(generator)
        channels, classes = generator.choice([1, 3]), generator.randint(2, 11)
        network = build(architecture, channels=channels, classes=classes).eval()
        promised = cost(architecture, channels, classes)
        assert sum(p.numel() for p in network.parameters()) == promised.params, architecture
        with torch.no_grad():
            logits, maps = network.forward_with_stages(
                images(architecture, channels, 1, dtype=torch.float32)
            )
        assert tuple(tuple(m.shape[-2:]) for m in maps) == architecture.sizes, architecture
        assert [m.shape[1] for m in maps] == [
            s.channels for s in architecture.stages
        ] and logits.shape == (1, classes)
        assert torch.isfinite(logits).all()


def test_stays_in_channels_last_from_an_image_of_one_channel():
    """A map of one channel has both layouts; torch would go on in the slower one."""
    architecture = Architecture.parse(
        "28px: 3k3@C4, 3k3p1reflect max2/2, 3k3p1circular blur/2, 3k3x2r, 3k3p0:1"
    )
    network = build(architecture, channels=1, classes=3)
    for training in (True, False):
        made = []
        hooks = [
            convolution.register_forward_hook(lambda _, inputs, output: made.append(output))
            for convolution in network.convolutions
        ]
        network.train(training)(images(architecture, channels=1, dtype=torch.float32))
        assert len(made) == len(network.convolutions)
        for maps in made:
            assert (
                maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
            )
        for hook in hooks:
            hook.remove()
    assert channels_last(torch.zeros(2, 1, 4, 5)).stride() == (20, 1, 5, 1)


@pytest.mark.parametrize("window", ["3/2", "2/2", "4/3"])
def test_power_pooling_is_that_of_torch(window):
    maps = torch.rand(2, 4, 11, 12, dtype=torch.float64)
    kernel, stride = map(int, window.split("/"))
    pooled = Subsample(step_spec(Subsampling.parse(f"lp{window}"), 4))(maps)
    torch.testing.assert_close(pooled, torch.nn.functional.lp_pool2d(maps, 2.0, kernel, stride))


def test_padding_adds_nothing_to_power_pooling():
    maps = torch.rand(2, 4, 11, 12, dtype=torch.float64)
    for padding in ((1, 1), (0, 1), (1, 0)):
        step = Subsampling("lp", 3, 2, padding)
        padded = torch.nn.functional.pad(maps, padding * 2)
        expected = torch.nn.functional.lp_pool2d(padded, 2.0, 3, 2)
        torch.testing.assert_close(Subsample(step_spec(step, 4))(maps), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "conv"])
def test_every_subsampling_has_finite_gradients_where_nothing_is_active(kind, dtype):
    """Half of the pixels are 0, as behind a ReLU, and some windows are 0 throughout."""
    step = Subsampling.parse(KINDS[kind].example)
    maps = torch.randn(1, 2, 16, 16).relu()
    maps[:, 1] = 0
    maps = maps.to(dtype).requires_grad_()
    pooled = Subsample(step_spec(step, 2))(maps)
    assert pooled.dtype == dtype and tuple(pooled.shape[-2:]) == (place(step.rule, 16)[0],) * 2
    pooled.float().square().sum().backward()
    assert maps.grad is not None and torch.isfinite(maps.grad).all() and not maps.grad[:, 1].any()


def test_the_plain_network_blurs_with_the_window_that_verdicts_assume():
    """plain.py stands alone, so that it has numbers of its own."""
    bells = {name: kind.windows for name, kind in KINDS.items() if isinstance(kind, Blur)}
    assert {name: bell.sigma for name, bell in bells.items()} == plain.BLUR_SIGMA
    assert plain.BLUR_PIXELS == BLUR_KERNEL


def test_power_pooling_trains_in_both_precisions():
    architecture = Architecture.parse("12px: 3k3@C4, 3k3 lp3/2p1, 3k3")
    for precision in (torch.float32, torch.bfloat16):
        network = build(architecture, channels=1, classes=3).train()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            network(images(architecture, channels=1, dtype=torch.float32)).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_seeds_decide_alone():
    architecture = Architecture.parse("12px: 3k3@C4, 3k3 max2/2")
    state = torch.random.get_rng_state()
    first = build(architecture, channels=1, classes=3, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    same, other = (build(architecture, channels=1, classes=3, seed=s) for s in (1, 2))
    for a, b, c in zip(first.parameters(), same.parameters(), other.parameters()):
        assert torch.equal(a, b)
        assert not torch.equal(a, c) or a.std() == 0


@pytest.mark.parametrize(
    "text", [P4CNN.format("C4"), RESIDUAL.format("C8"), "12px: 3k3@D4 conv3/2p1, 3k2@C4"]
)
def test_pickles_and_copies_also_after_evaluation(text):
    architecture = Architecture.parse(text)
    network, x = trained(architecture), images(architecture)
    network(x).sum().backward()
    logits = network.eval()(x)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), logits)
        with torch.no_grad():
            next(twin.parameters()).mul_(2)
        assert torch.equal(network(x), logits) and not torch.equal(twin(x), logits)


def test_no_graph_breaks():
    architecture = Architecture.parse("12px: 3k3@D4 max2/2, 3k3r, 3k3@C4 blur/2")
    network, x = (
        build(architecture, channels=2, classes=3),
        images(architecture, dtype=torch.float32),
    )
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), network(x), atol=1e-5)


@pytest.mark.parametrize("filters", ["free", "basis"])
def test_bfloat16_keeps_filters_statistics_and_logits_in_float32(filters):
    architecture = Architecture.parse(f"28px: 4k3@C4 max2/2, 4k3x2r filters={filters}")
    network, x = (
        build(architecture, channels=1, classes=3),
        images(architecture, 1, 32, dtype=torch.float32),
    )
    exact = copy.deepcopy(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, maps = network.forward_with_stages(x)
        weights = network.weights()
    logits.square().sum().backward()
    expected, _ = exact.forward_with_stages(x)
    expected.square().sum().backward()
    assert maps[0].dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert torch.equal(weights[1], exact.weights()[1])
    assert relative(logits, expected) < 0.03
    for a, b in zip(network.convolutions, exact.convolutions):
        assert relative(a.norm.running_var, b.norm.running_var) < 0.01
        assert (
            torch.nn.functional.cosine_similarity(
                a.filters.grad.flatten(), b.filters.grad.flatten(), dim=0
            )
            > 0.98
        )


STEPS = {
    "max": "max2/2 max3/2p1",
    "avg": "avg2/2 avg3/2p1",
    "lp": "lp2/2 lp3/2p1",
    "conv": "conv3/2p1",
    "blur": "blur/2",
    "blurmax": "blurmax/2",
    "adaptive": "adaptive/2 adaptive5",
    "adaptivemax": "adaptivemax/2 adaptivemax5",
    "resize": "resize5 resize5bicubic resize5nearest resize17 resize17bicubic resize17nearest",
    "crop": "crop7 crop15",
}
LAYERS = ["4k3p1reflect", "4k3p1circular", "4k3d2p2", "4k3s2", "4k3r", "4k3x2r"]


def test_the_layers_that_are_tried_are_all_that_there_are():
    assert set(STEPS) == set(KINDS)


@pytest.mark.parametrize("group", ["", "@C4"])
@pytest.mark.parametrize(
    "layer", [f"4k3 {step}" for steps in STEPS.values() for step in steps.split()] + LAYERS
)
def test_every_layer_trains_in_bfloat16_as_in_float32(layer, group):
    architecture = Architecture.parse(f"12px: 4k3{group}, {layer}, 4k3")
    network = build(architecture, channels=1, classes=3)
    x = images(architecture, 1, 8, dtype=torch.float32)
    results = []
    for enabled in (False, True):
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits, maps = network.forward_with_stages(x)
        logits.square().sum().backward()
        assert {m.dtype for m in maps} == {torch.bfloat16 if enabled else torch.float32}
        gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
        results.append((logits.detach(), gradient))
    (logits, gradient), (reduced_logits, reduced_gradient) = results
    assert relative(reduced_logits, logits) < 0.1
    assert torch.nn.functional.cosine_similarity(reduced_gradient, gradient, dim=0) > 0.95


def test_equals_plain_torch_without_a_group():
    """A network over C1 is Conv2d, BatchNorm2d, ReLU."""
    from torch import nn

    architecture = Architecture.parse("14px: 5k3 max2/2, 4k3p0")
    network = trained(architecture)
    a, b = network.convolutions
    plain = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).double()
    with torch.no_grad():
        for mine, conv, norm in ((a, plain[0], plain[1]), (b, plain[4], plain[5])):
            conv.weight.copy_(mine.filters.view_as(conv.weight))
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, name).copy_(getattr(mine.norm, name))
        plain[9].load_state_dict(network.linear.state_dict())
    x = images(architecture)
    assert relative(network(x), plain(x)) < 1e-12
    assert relative(network.eval()(x), plain.eval()(x)) < 1e-12


def test_refuses_other_images():
    network = build(Architecture.parse("12px: 3k3@C4"), channels=1, classes=3)
    for shape in ((2, 1, 13, 12), (2, 3, 12, 12), (1, 12, 12)):
        with pytest.raises(ValueError, match=r"takes images \[batch, 1, 12, 12\]"):
            network(torch.zeros(shape))
    with pytest.raises(ValueError, match="at least one of its classes"):
        build(Architecture.parse("12px: 3k3@C4"), channels=1, classes=0)
    with pytest.raises(ValueError, match="two values per field"):
        build(Architecture.parse("3px: 3k3p0"), channels=1, classes=3)(torch.zeros(1, 1, 3, 3))
