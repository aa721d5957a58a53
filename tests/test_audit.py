"""Audits of modules that are not ours: each claim about an element is what is measured."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from searchspace.architecture import Architecture
from studies.cli.main import app
from support.random_modules import random_module
from trainers import audit, build, fold
from trainers.instruments.audit.opening import names_model, open_model
from trainers.instruments.audit.repair import repair_model

SOBEL = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
SOBEL = SOBEL.expand(6, 1, 3, 3).clone()
D4 = ("e", "r90", "r180", "r270", "m", "mr90", "mr180", "mr270")


def pooled(*layers, channels=6):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


class Function(nn.Module):
    """A module whose forward pass is `function(convolution, images)`."""

    def __init__(self, function, channels=6, outputs=6, **options):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, **{"padding": 1, **options})
        self.last = nn.Conv2d(outputs, 5, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.conv, x).relu()).relu().mean((2, 3))


class Returns(nn.Module):
    """Returns what a function makes of the image."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def claims(module, size, **options):
    """{element: claim}, each of which agrees with its measurement."""
    found = audit(module, size, sizes=False, **options)
    assert [f for f in found.findings if f.agrees is False] == [], found.text()
    return {str(f.element): f.claim for f in found.findings}


def kept(module, size, **options):
    found = claims(module, size, **options)
    assert "not known" not in found.values()
    return {name for name, claim in found.items() if claim == "exact"}


CIRCULAR = nn.Conv2d(3, 6, 3, dilation=2, padding_mode="circular", padding=2)
WIDER = nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1)
CEIL = nn.AvgPool2d(3, 2, 1, ceil_mode=True)
CONV = nn.Conv2d(3, 6, 3)
HALVES = nn.MaxPool2d(2, ceil_mode=True)  # of an odd map: other windows when it is turned
LARGEST = (nn.AdaptiveMaxPool2d(1), nn.Flatten())
OVAL = nn.Conv2d(3, 6, (3, 5), padding=(1, 2))
MANY = nn.Conv2d(3, 12, 3, padding=1)
STRIDED = (nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))


@pytest.mark.parametrize(
    "module, size, expected",
    [
        (pooled(*STRIDED), 9, D4),
        (pooled(*STRIDED), 8, ("e", "mr90")),
        (pooled(OVAL, nn.ReLU()), 8, ("e", "r180", "m", "mr180")),
        (pooled(nn.Conv2d(3, 6, 3, stride=(1, 2), padding=1), nn.ReLU()), 8, ("e", "mr180")),
        (pooled(CONV, nn.ReLU(), nn.MaxPool2d(2)), 9, ("e", "mr90")),
        (pooled(CONV, nn.ReLU(), nn.MaxPool2d(2)), 10, D4),
        (pooled(CONV, nn.ReLU(), CEIL), 10, ("e", "mr90")),
        (nn.Sequential(CONV, HALVES, nn.ReLU(), nn.Sigmoid(), *LARGEST), 7, D4),
        (nn.Sequential(CONV, HALVES, Returns(lambda x: x.max(3)[0].amax(2))), 7, D4),
        (nn.Sequential(CONV, HALVES, Returns(torch.neg), *LARGEST), 7, ("e", "mr90")),
        (nn.Sequential(CONV, HALVES, nn.BatchNorm2d(6), *LARGEST), 7, ("e", "mr90")),
        (pooled(CIRCULAR, nn.GroupNorm(2, 6)), 8, D4),
        (pooled(nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1), nn.ReLU()), 7, D4),
        (nn.Sequential(WIDER, nn.ReLU(), nn.Conv2d(6, 4, 3)), 7, ("e", "mr90")),
        (nn.Sequential(CONV, nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(6, 2, 3)), 7, D4),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)), 8, ("e",)),
        (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 3)), 8, D4),
        (nn.Sequential(MANY, nn.PixelShuffle(2), nn.Conv2d(3, 2, 3, padding=1)), 6, ("e",)),
    ],
)  # fmt: skip
def test_the_grid_keeps_what_is_measured(module, size, expected):
    assert kept(module, size) == set(expected)


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda conv, x: conv(x) + F.interpolate(conv(x)[..., ::2, ::2], 7, mode="bilinear"), D4),
        (lambda conv, x: conv(x) + F.interpolate(conv(x)[..., ::2, ::2], size=7), ("e", "mr90")),
        (lambda conv, x: conv(x) * conv(x).mean((2, 3), keepdim=True).sigmoid(), D4),
        (lambda conv, x: conv(x) - conv(F.pad(x, (0, 1, 0, 1))[..., 1:, 1:]), ("e", "mr90")),
        (lambda conv, x: torch.cat([conv(x)[:, :3], conv(x)[:, 3:].flip(1)], 1), D4),
        (lambda conv, x: conv(x) + torch.linspace(-1, 1, 7), ("e", "mr180")),
        (lambda conv, x: conv(x) + torch.linspace(-1, 1, 7) ** 2, ("e", "r180", "m", "mr180")),
        (lambda conv, x: F.layer_norm(conv(x).permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2), D4),
        (lambda conv, x: conv(x) + conv(x.flip(3)), ("e", "r180", "m", "mr180")),
        (lambda conv, x: conv(x).roll(1, 3), ("e", "mr180")),
        (lambda conv, x: F.conv2d(conv(x), SOBEL, groups=6), ("e", "mr180")),
        (lambda conv, x: F.conv2d(conv(x), SOBEL, groups=6).abs(), ("e", "r180", "m", "mr180")),
        (lambda conv, x: F.conv2d(conv(x), SOBEL, groups=6) ** 2, ("e", "r180", "m", "mr180")),
        (lambda conv, x: F.glu(torch.cat([conv(x), conv(x)], 1), 1), D4),
        (lambda conv, x: conv(x) * conv(x).flatten(2).topk(3)[0].mean(2)[..., None, None], D4),
        (
            lambda conv, x: conv(x) + conv(x)[..., 1:].flatten(2).sort()[0][:, :, 5, None, None],
            ("e", "mr180"),
        ),
        (lambda conv, x: F.conv2d(conv(x), torch.ones(6, 1, 3, 3, dtype=x.dtype), groups=6), D4),
    ],
)
def test_functional_steps_are_followed(function, expected):
    assert kept(Function(function), 7) == set(expected)


class Added(nn.Module):
    """Adds a parameter of a number for each place, all zero as it begins."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(1, 6, 8, 8))

    def forward(self, x):
        return x + self.places


class RowOff(nn.Module):
    """Writes zeros into a part of the map."""

    def forward(self, x):
        x[:, :, 0] = 0
        return x


@pytest.mark.parametrize(
    "layer, why",
    [
        (Added(), "1.places: adds or multiplies values that depend on the position"),
        (nn.LayerNorm([6, 8, 8]), "1: adds or multiplies values that depend on the position"),
        (RowOff(), "1: writes into a part of the map"),
    ],
)
def test_what_depends_on_the_position_breaks_as_soon_as_training_may_make_it(layer, why):
    found = audit(pooled(nn.Conv2d(3, 6, 3, padding=1), layer, nn.ReLU()), 8, sizes=False)
    broken = [f for f in found.findings if f.claim == "broken"]
    assert len(broken) >= 4 and all([str(lost) for lost in f.lost] == [why] for f in broken)
    assert not any(f.doubted for f in found.findings)


def test_writing_that_ends_symmetric_is_not_where_an_element_is_lost():
    padded = nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular")
    strided = nn.Conv2d(6, 6, 3, padding=1, stride=2, padding_mode="circular")
    found = audit(pooled(padded, nn.ReLU(), strided), 8)
    assert {lost.layer for f in found.findings for lost in f.lost} == {"2"}
    assert found.exact_sizes == (7, 9)


def test_exact_sizes_of_images_that_are_not_square_are_pairs(tmp_path):
    model = pooled(*STRIDED).eval()
    found = audit(model, (8, 13))
    assert found.exact_sizes == ((7, 13), (9, 13)) and "7x13 and 9x13" in found.text()
    assert all(audit(model, size, sizes=False).exact for size in found.exact_sizes)
    assert found.as_dict()["exact_sizes"] == [[7, 13], [9, 13]]
    made = repair_model(model, found, tmp_path / "out.pt2")
    assert made.after.exact and made.after.size == (8, 13)
    assert "resized from 8x13 to 9x13 pixels" in made.text()


@pytest.mark.parametrize("seed", [*range(10), 117, 302, 328])  # the last three were wrong once
def test_claims_on_random_modules_are_measured(seed):
    module, size, channels = random_module(seed)
    claims(module, size, channels=channels)


def test_a_folded_network_of_ours_is_audited_with_its_own_weights():
    architecture = Architecture.parse("8px: 2k3@C4, 2k3 max2/2, 2k3")
    exact = audit(fold(build(architecture, channels=1, classes=3)), 8, channels=1)
    assert exact.exact and {*map(str, exact.symmetric)} == {"e", "r90", "r180", "r270"}
    broken = build(architecture.with_size(9), channels=1, classes=3)
    assert {*map(str, audit(fold(broken), 9, channels=1).symmetric)} == {"e"}


def test_it_says_where_elements_are_lost_and_which_sizes_keep_them():
    found = audit(nn.Sequential(*pooled(*STRIDED), nn.Identity()), 8)
    rows = {row["element"]: row for row in found.as_dict()["elements"]}
    assert rows["m"]["lost_at"] == ["0"] and rows["m"]["why"] == ["width shifted by 1 px"]
    assert found.exact_sizes == (7, 9) and not found.exact
    assert "0: width shifted by 1 px" in found.text()


class Reads(nn.Module):
    """Looks at values of its input."""

    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class Strange(nn.Module):
    """Does what no rule is for."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.cumprod(self.conv(x), 2).mean((2, 3))


@pytest.mark.parametrize("module, named", [(Reads(), "reads values"), (Strange(), "cumprod")])
def test_what_is_not_followed_is_named_and_never_called_exact(module, named):
    found = audit(module, 8)
    assert {f.claim for f in found.findings[1:]} == {"not known"} and not found.exact
    assert named in " ".join(found.unread) and named in found.text()


def test_no_claim_stands_against_its_measurement():
    # exact, since what a ReLU returns is at least the zeros beside it, which no rule knows
    early, late = nn.ZeroPad2d((1, 0, 1, 0)), nn.MaxPool2d(2, ceil_mode=True)
    found = audit(pooled(nn.Conv2d(3, 6, 3), nn.ReLU(), early, late), 8, sizes=False)
    assert not found.exact and {str(f.element) for f in found.findings if f.doubted} == {
        str(f.element) for f in found.findings if f.claim == "not known"
    } == {*D4} - {"e", "mr90"}  # fmt: skip
    assert all(f.measured < 1e-10 and f.agrees is False for f in found.findings if f.doubted)
    assert "the layers say one thing" in found.text() and "r180" in found.as_dict()["not_known"]


class Two(nn.Module):
    """Needs two inputs."""

    def forward(self, image, mask):
        return (image * mask).mean((2, 3))


@pytest.mark.parametrize(
    "module, options, message",
    [
        (Two(), {}, "takes 2 inputs .image, mask.: wrap it"),
        (Returns(lambda x: {"out": x, "aux": x}), {}, "a dict with the keys out, aux; wrap it"),
        (Returns(lambda x: (x, x)), {}, "returned tuple; it must return one tensor"),
        (Returns(lambda x: x.flatten(2)), {}, r"shape \[1, 3, 64\] for one image"),
        (CONV, {"channels": 1}, "its first convolution has 3 channels: give that number"),
        (nn.Conv2d(3, 4, 9), {}, "does not take images of shape .1, 3, 8, 8."),
        (pooled(CONV, Returns(lambda x: x[..., 3:-3])), {}, "the map behind 1 has no positions"),
        (lambda x: x, {}, "needs a torch.nn.Module, and this is function"),
        (CONV, {"group": "C8"}, "C8 has elements that are not quarter turns or flips.*give C4"),
        (CONV, {"group": "Q"}, "there is no group 'Q'"),
    ],
)
def test_bad_input_is_one_clear_message(module, options, message):
    with pytest.raises(ValueError, match=message):
        audit(module, 8, **options)


def test_a_module_that_hardly_depends_on_the_image_is_not_called_symmetric():
    faint = pooled(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
    with torch.no_grad():
        faint[0].weight *= 1e-7
    assert {*map(str, audit(faint, 8, sizes=False).symmetric)} == {"e"}


def test_scripted_modules_are_audited():
    scripted = torch.jit.script(pooled(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()).eval())
    assert kept(scripted, 8) == {"e", "mr90"} and kept(scripted, 9) == set(D4)


def test_a_repaired_model_keeps_the_group_and_its_file_is_audited_again(tmp_path):
    flat = nn.Sequential(*STRIDED, nn.Flatten(), nn.Linear(6 * 16, 3)).eval()
    made = repair_model(flat, audit(flat, 8), tmp_path / "out.pt2")
    assert made.after.exact and not made.before.exact and len(made.changes) == 2
    assert "images are resized from 8 to" in made.text() and made.as_dict()["repair"]["after"]
    with pytest.raises(ValueError, match="add --run-code"):
        open_model(made.path)
    assert audit(open_model(made.path, run_code=True), 8, sizes=False).exact
    with pytest.raises(ValueError, match="nothing to repair"):
        repair_model(CONV, audit(CONV, 8), tmp_path / "out.pt2")


def test_a_flattened_map_is_rewritten_as_the_same_function(tmp_path):
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    made = repair_model(flat, audit(flat, 8), tmp_path / "out.pt2")
    assert made.after.exact and made.difference < 1e-5 and len(made.changes) == 1


def test_what_no_size_repairs_is_averaged_over_the_group(tmp_path):
    wide = nn.Conv2d(3, 6, (1, 3), padding=(0, 1))
    model = pooled(wide, nn.ReLU()).eval()
    made = repair_model(model, audit(model, 8), tmp_path / "out.pt2")
    assert made.after.exact and made.before.surviving_group == "D2"
    assert "each image runs 8 times" in made.text() and len(made.changes) == 1
    images, averaged = torch.randn(1, 3, 8, 8), torch.export.load(tmp_path / "out.pt2").module()
    assert (averaged(images) - averaged(images.rot90(1, (2, 3)))).abs().max() < 1e-5
    with pytest.raises(ValueError, match="only vectors of images whose shape the group keeps"):
        repair_model(wide.eval(), audit(wide, 8), tmp_path / "maps.pt2")
    assert not (tmp_path / "maps.pt2").exists()


@pytest.mark.slow  # the first export of a process
def test_a_repair_to_onnx_runs_as_its_audit_says(tmp_path):
    import onnxruntime

    model = nn.Sequential(*STRIDED, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    made = repair_model(model, audit(model, 8), tmp_path / "out.onnx")
    images, read = torch.randn(1, 3, 8, 8), open_model(made.path).eval()
    session = onnxruntime.InferenceSession(made.path)
    ran = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    assert torch.allclose(read(images), torch.from_numpy(ran), atol=1e-5)
    assert str(Path(__file__).parents[1]).encode() not in Path(made.path).read_bytes()
    again = audit(read, 8, sizes=False)
    assert again.exact and all(f.agrees for f in again.findings)


def onnx_file(path, module, node=None):
    """Writes a strided convolution, a maximum and a linear layer as a graph."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"], strides=[2, 2], pads=[1] * 4),
        helper.make_node(node or "Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "1.weight", "1.bias"], ["y"], transB=1),
    ]
    stored = [numpy_helper.from_array(v.numpy(), k) for k, v in module.state_dict().items()]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, None, None])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(nodes, "small", [given], [result], stored)
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_an_onnx_file_is_read_as_onnxruntime_runs_it(tmp_path):
    import onnxruntime

    layers = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Linear(6, 4))
    path, images = onnx_file(str(tmp_path / "a.onnx"), layers), torch.randn(1, 3, 9, 9)
    session, read = onnxruntime.InferenceSession(path), open_model(path)
    expected = torch.from_numpy(session.run(None, {"x": images.numpy()})[0])
    assert torch.allclose(read.eval()(images), expected, atol=1e-5)
    assert kept(read, 9) == {"e", "mr90"}
    strided = audit(read, 8, sizes=False).findings[4]
    assert strided.lost[0].layer == "0" and strided.lost[0].why == "width shifted by 1 px"
    with pytest.raises(ValueError, match="does not read from ONNX: Cosh; give the torch module"):
        open_model(onnx_file(str(tmp_path / "b.onnx"), layers, "Cosh"))


def test_what_names_a_model_is_told_from_architectures(tmp_path):
    assert names_model("my.module:make") and names_model("a/b.py:make") and names_model("x.onnx")
    assert not names_model("28px: 10k3@C4") and not names_model("p4cnn")
    for name in ("none.pt2", "none.onnx"):
        with pytest.raises(ValueError, match="there is no file"):
            open_model(str(tmp_path / name), run_code=True)
    (tmp_path / "text.onnx").write_text("no graph")
    (tmp_path / "text.pt2").write_text("no archive")
    for name in ("text.onnx", "text.pt2"):
        with pytest.raises(ValueError, match="is not a"):
            open_model(str(tmp_path / name), run_code=True)


def test_the_command_prints_every_format(tmp_path, capsys):
    source = "from torch import nn\n\ndef make():\n    return nn.Conv2d(3, 4, 3, stride=2)\n"
    (tmp_path / "mine.py").write_text(source)
    given = ["check", f"{tmp_path}/mine.py:make", "--size", "8", "--group", "D1", "--format"]
    app([*given, "json"], standalone_mode=False)
    assert '"claim": "broken"' in capsys.readouterr().out
    app([*given, "csv"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[0].startswith("element,claim,lost_at")
    app([*given, "table"], standalone_mode=False)
    assert "width shifted by 1 px" in capsys.readouterr().out
