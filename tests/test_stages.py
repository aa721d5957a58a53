import pytest
import torch
from torch import nn

from searchspace.groups import Group
from support.toy_models import Lifting
from trainers.instruments.equivariance import equivariance_error
from trainers.instruments.feature_maps import measuring, pixels, watch

IMAGES = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def test_the_stages_of_a_plain_model_are_its_modules_with_weights_that_return_maps():
    logits, stages = watch(plain(), IMAGES)
    assert [s.name for s in stages] == ["0", "4.0"] and logits.shape == (8, 3)


def test_maps_are_those_of_the_module_despite_in_place_operations_after_it():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    _, (stage,) = watch(model, IMAGES)
    assert torch.equal(stage.maps, model[0](IMAGES)) and float(stage.maps.detach().min()) < 0


def test_hooks_are_removed():
    model = plain()
    watch(model, IMAGES)
    assert not any(m._forward_hooks for m in model.modules())


def test_an_unknown_module_is_named():
    with pytest.raises(ValueError, match="no module 'conv9'; its modules are 0, 1"):
        watch(plain(), IMAGES, stages=["conv9"])


def test_a_module_without_maps_is_named():
    with pytest.raises(ValueError, match="module 7 returns no maps"):
        watch(plain(), IMAGES, stages=["7"])


def test_measuring_leaves_the_model_as_it_was():
    model = plain().train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    equivariance_error(model, IMAGES, Group.parse("C4"))
    assert model.training and model[0].training and not model[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_measuring_is_not_done_in_reduced_precision():
    model, seen = Lifting("C4"), set()
    model.maps.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(IMAGES)
        assert seen == {torch.bfloat16}
        seen.clear()
        assert equivariance_error(model, IMAGES, Group.parse("C4")).logits.worst < 1e-5
    assert seen == {torch.float32}
    with pytest.raises(ValueError, match="bfloat16"), measuring(plain().bfloat16()):
        pass


def test_pixels_are_between_zero_and_one():
    images = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert pixels(images, lambda x: x).tolist() == [[[[0.0, 1.0]]]]
    assert pixels(images, plain().double()).dtype == torch.float64
    with pytest.raises(ValueError, match="not finite"):
        pixels(torch.full((1, 1, 2, 2), float("nan")), lambda x: x)


@pytest.mark.parametrize(
    "group,kind",
    [("C4", "regular"), ("C4", "irrep"), ("D4", "regular"), ("D1", "regular"), ("SO2", "irrep")],
)
def test_escnn_maps_move_by_their_own_field_type(group, kind, monkeypatch):
    escnn = pytest.importorskip("escnn")
    # Without this escnn 1.0.11 passes a numpy.matrix to scikit-learn's decomposition, which refuses
    # it.
    monkeypatch.setattr("escnn.group._numerical.randomized_svd", None)
    spaces = {
        "C4": escnn.gspaces.rot2dOnR2(4),
        "D4": escnn.gspaces.flipRot2dOnR2(4),
        "D1": escnn.gspaces.flip2dOnR2(),
        "SO2": escnn.gspaces.rot2dOnR2(-1),
    }
    space, measured = spaces[group], Group.parse("C4" if group == "SO2" else group)
    torch.manual_seed(0)
    incoming = escnn.nn.FieldType(space, [space.trivial_repr])
    model = Wrapped(
        escnn,
        incoming,
        escnn.nn.FieldType(
            space, 3 * [space.regular_repr if kind == "regular" else space.irrep(1)]
        ),
    )
    error = equivariance_error(model, IMAGES, measured)
    assert [s.stage for s in error.stages] == ["conv"] and error.stages[0].worst < 1e-5
    plain = equivariance_error(model, IMAGES, Group.parse("D8")).stages[0]
    assert (
        plain.over(
            [e for e in Group.parse("D8").elements if e not in measured and e.on_grid]
            or plain.elements
        )
        > 0.1
    )


class Wrapped(nn.Module):
    def __init__(self, escnn, incoming, outgoing):
        super().__init__()
        self.wrap = lambda x: escnn.nn.GeometricTensor(x, incoming)
        self.conv = escnn.nn.R2Conv(incoming, outgoing, kernel_size=5, padding=2)

    def forward(self, images):
        return self.conv(self.wrap(images)).tensor.square().mean((-1, -2))
