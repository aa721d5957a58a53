"""What a user of an exported network relies on: every file is the trained network, runs without
this program, and nothing is half-written.
"""

import ast
import copy
import errno
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from searchspace.architecture import Architecture
from searchspace.groups import Group
from support.architectures import random_architecture
from support.bundles import bundle, copied, manifest_of, subject  # noqa: F401  (fixtures)
from support.isolation import OURS, accuracies, run_alone
from trainers.bundles import export as exporting
from trainers.bundles import formats as files
from trainers.bundles.export import TrainedNetwork, export
from trainers.bundles.formats import (
    BUNDLE_FORMATS,
    CARD,
    FormatError,
    content_of,
    logits,
    model_of,
    runner,
    source,
    write_format,
)
from trainers.bundles.model import Model
from trainers.bundles.model_card import card
from trainers.bundles.symmetry_check import changes, movable, parity_tolerance, random_images
from trainers.bundles.verify import verify
from trainers.data.datasets import load_data
from trainers.data.fitting import fit_images
from trainers.data.pools import _recolor
from trainers.networks.networks import build
from trainers.settings import Augment, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.train import start_training, train

EVERY_LAYER = (
    "17px: 2k3@D4 max3/2p1, 2k3p1reflect avg3/2p1:0, 2k3d2p2circular, 2k3r adaptivemax/2, 2k2p0 "
    "head=group_max",
    "15x18px resize20: 2k3@C4 max2/2ceil, 2k3p1replicate blur/2, 3k3@C2 conv3/2p1, 2k1 resize7, "
    "2k3 adaptive3 head=group_mean",
    "12px: 2k3@C4 resize16bicubic, 2k3 lp3/1p1, 2k3 blurmax/2, 2k3s2r crop6, 2k3 resize9nearest, "
    "2k3 avg2/2ceil, 2k3 adaptivemax2 head=none filters=basis",
    "11px: 2k3@D4+C2, 2k3s2r, 3k3@C4|C2|C1 conv3/2p1, 2k2@C4b2, 2k3@C2~0.3",
)


def test_every_format_gives_the_logits_of_the_trained_network(subject, bundle):
    splits, network = subject.splits, copy.deepcopy(subject.network).eval()
    shift, scale = (torch.tensor(v).view(-1, 1, 1) for v in (splits.mean, splits.std))
    images = splits.validation.pixels.float() / 255
    expected = network((images - shift) / scale).detach()
    assert set(manifest_of(bundle)["formats"]) == set(BUNDLE_FORMATS)
    for name in BUNDLE_FORMATS:
        run = runner(bundle, name)
        for part in (images[:1], images[:7], images):
            assert (logits(run, part, batch=1000) - expected[: len(part)]).abs().max() < 1e-5, name


def test_strangers_scripts_get_the_reported_accuracy(subject, bundle, tmp_path):
    images = subject.splits.validation
    found = accuracies(bundle, images.pixels, images.labels, tmp_path)
    assert found == pytest.approx([subject.scores["accuracy"]] * 3, abs=1e-12)


def test_guard_sees_a_forbidden_import(tmp_path):
    with pytest.raises(AssertionError, match="imported searchspace, which"):
        run_alone("import searchspace.groups", tmp_path)


def test_snippets_of_the_card_run(subject, copied):
    Image.fromarray(subject.splits.validation.pixels[0, 0].numpy()).resize((40, 30)).save(
        copied / "image.png"
    )
    blocks = re.findall(r"```python\n(.*?)```", (copied / CARD).read_text(), re.DOTALL)
    assert len(blocks) == 4
    # the first block prints the class and its share
    with_torch = blocks[0] + blocks[1] + "print(tuple(logits.shape))"
    label, share, *shape = run_alone(
        with_torch, copied, forbidden=OURS + ("onnxruntime", "safetensors")
    ).split()
    assert label in "0123456789" and 0.1 <= float(share) <= 1 and shape == ["(8,", "10)"]
    assert (
        run_alone(blocks[2] + "print(logits.shape)", copied, forbidden=OURS + ("torch",))
        == "(8, 10)"
    )
    named, most = run_alone(blocks[3], copied, forbidden=OURS + ("torch",)).split()
    assert named == label and float(most) == pytest.approx(float(share), abs=1e-3)


def test_texts_of_the_data_become_no_markup_of_the_card(bundle):
    evil = "`x` | [a](http://b) <script>\n# head\x1b\n"
    manifest = manifest_of(bundle)
    manifest["data"]["data"], manifest["origin"]["study"], manifest["classes"] = (
        evil,
        evil,
        ["a``b", evil],
    )
    manifest["training"]["seen"], manifest["refused"] = [evil], {"onnx": evil}
    manifest["elements"][0]["lost"] = evil
    text = card(manifest)
    assert "\n# head" not in text and "\x1b" not in text and "``` a``b ```" in text
    outside = re.sub(
        r"(`+)(?!`).*?(?<!`)\1(?!`)",
        "",
        re.sub(r"\\.", "", re.sub("```python.*?```", "", text, flags=re.DOTALL)),
    )
    assert "<script" not in outside and "](" not in outside
    rows = [line for line in re.sub(r"\\\|", "", text).splitlines() if line.startswith("| `")]
    assert len({row.count("|") for row in rows}) == 1 and len(rows) == len(manifest["elements"])


def test_card_and_manifest_say_that_relaxed_weights_are_near(subject, tmp_path):
    architecture = Architecture.parse("12px: 3k3@C4+C2, 3k3 max2/2, 3k3@C2 gamma=dual")
    config = replace(subject.config, training=Training(epochs=1, batch_size=32))
    splits = load_data(config.data, architecture.size)
    scores = train(architecture, config, tmp_path / "training", 1, splits=splits).as_dict()
    network = start_training(architecture, config, tmp_path / "training", splits).network
    trained = TrainedNetwork(network, splits, config, scores, {"trial": 1})
    folder = export(trained, tmp_path / "bundle")
    exactness = manifest_of(folder)["exactness"]
    assert exactness["certain_group"] == "C2" and exactness["surviving"] == ["e", "r180"]
    distances = exactness["weight_distances"]
    assert distances["stage 1 conv1"] > 0.1 and distances["stage 3 conv1"] < 1e-6
    text = (folder / CARD).read_text()
    assert "beyond C2 is near and not exact" in text
    assert f"stage 2 conv1 {distances['stage 2 conv1']:.2g}" in text


def test_card_and_manifest_say_what_was_reported(subject, bundle):
    card, manifest = (bundle / CARD).read_text(), manifest_of(bundle)
    reported = {k: v for k, v in subject.scores.items() if k != "learned"}
    assert manifest["scores"] == reported and manifest["architecture"] == str(
        subject.network.architecture
    )
    assert (
        f"{100 * subject.scores['accuracy']:.2f} %" in card and "On 101 validation images" in card
    )
    assert [row["exact"] for row in manifest["elements"]] == [True] * 7
    for row in manifest["elements"]:
        assert (
            set(row["relative_change"]) == set(BUNDLE_FORMATS)
            and max(row["relative_change"].values()) < 1e-3
        )


def test_model_source_imports_torch_and_the_standard_library_only(bundle):
    tree = ast.parse((bundle / "model.py").read_text())
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert names | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)} == {
        "math",
        "os",
        "torch",
        "torch.nn.functional",
    } | {"torch"}
    assert (bundle / "model.py").read_text() == source()


def test_no_file_names_a_folder_of_this_machine(bundle):
    here = str(files.Path(files.__file__).resolve().parents[2]).encode()
    for path in bundle.iterdir():
        assert here not in path.read_bytes(), path.name


def test_export_leaves_the_network_as_it_is(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "BUNDLE_FORMATS", {"torch": BUNDLE_FORMATS["torch"]})
    subject.network.train()
    before = copy.deepcopy(subject.network.state_dict())
    export(subject, tmp_path / "bundle")
    assert subject.network.training and all(module.training for module in subject.network.modules())
    after = subject.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert next(subject.network.parameters()).requires_grad


@pytest.mark.parametrize("text", EVERY_LAYER)
def test_every_kind_of_layer_is_exported_in_every_format(text, tmp_path):
    for name, difference in differences(Architecture.parse(text), 3, 0, tmp_path).items():
        assert difference < 1e-5, name


AROUND = "8px: 2k3i0.5@C4, 2k3 max2/2 & 2k3, 2k3 max2/2 coordinates=radius orbit=C2"


def test_what_stands_around_the_stages_is_exported_with_its_symmetry(subject, tmp_path):
    """An orbit average of two streams, with coordinates and an invariant share: every format is
    that network, and exactly invariant.
    """
    architecture = Architecture.parse(AROUND)
    config = TrainingConfig(
        subject.config.data, Training(epochs=1, batch_size=64), Symmetry(group="D4"), seed=1
    )
    splits = load_data(config.data, architecture.size)
    scores = train(architecture, config, tmp_path / "training", 1, splits=splits)
    network = start_training(architecture, config, tmp_path / "training", splits).network
    trained = TrainedNetwork(network, splits, config, scores.as_dict(), {})
    folder = export(trained, tmp_path / "bundle")
    manifest = manifest_of(folder)
    assert (
        set(manifest["formats"]) == set(BUNDLE_FORMATS) and manifest["exactness"]["exact"] is False
    )
    rows = {row["element"]: row for row in manifest["elements"]}
    assert [name for name, row in rows.items() if row["exact"]] == ["r180"]
    for name in BUNDLE_FORMATS:
        assert rows["r180"]["relative_change"][name] < 1e-3 < rows["m"]["relative_change"][name]
    assert verify(folder).good


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_random_architectures_are_exported_in_every_format(seed, tmp_path):
    architecture = random_architecture(
        random.Random(500 + seed), groups=("C1", "C2", "C4", "D1", "D4", "C8", "D8")
    )
    for name, difference in differences(architecture, 1 + 2 * (seed % 2), seed, tmp_path).items():
        assert difference < 1e-5, (name, str(architecture))


def differences(architecture, channels, seed, folder):
    """The largest difference of each format from the network, relative to its largest logit, with
    statistics as after training.
    """
    network = build(architecture, channels=channels, classes=4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        network(torch.rand(16, channels, *architecture.size, generator=generator) * 4 - 2)
    content = content_of(network, (0.4,) * channels, (0.25,) * channels, "resize", tuple("abcd"))
    model = model_of(network, content)
    images = torch.rand(9, channels, *architecture.size, generator=generator)
    expected = copy.deepcopy(network).eval()((images - 0.4) / 0.25).detach()
    found = {}
    for name in BUNDLE_FORMATS:
        write_format(model, content, folder, name)
        run = runner(folder, name)
        parts = [(logits(run, images[:n]) - expected[:n]).abs().max() for n in (1, 9)]
        found[name] = float(max(parts) / expected.abs().max())
    return found


def spoiled(name, monkeypatch):
    """Makes one format's writer change a weight."""
    honest = files.write_format

    def writer(model, content, folder, wanted):
        if wanted == name:
            model = copy.deepcopy(model)
            model.network.head.linear.weight.data[0, 0] += 0.01
        honest(model, content, folder, wanted)

    monkeypatch.setattr(exporting, "write_format", writer)


def test_plain_torch_that_differs_is_not_exported(subject, tmp_path, monkeypatch):
    spoiled("torch", monkeypatch)
    with pytest.raises(
        ValueError,
        match="nothing was exported: torch differs from the trained network: its logits by up to",
    ):
        export(subject, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_another_format_that_differs_is_left_out_and_the_bundle_says_so(
    subject, tmp_path, monkeypatch
):
    spoiled("torch.export", monkeypatch)
    folder = export(subject, tmp_path / "bundle")
    assert not (folder / "model.pt2").exists() and (folder / "model.pt").exists()
    assert "differs from the trained network" in manifest_of(folder)["refused"]["torch.export"]
    assert "No `torch.export` file: torch.export differs" in (folder / CARD).read_text()
    assert verify(folder).good


def test_an_exporter_that_fails_names_format_and_reason(subject, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no translation of this operation")

    monkeypatch.setattr(torch.onnx, "export", broken)
    content = content_of(subject.network, (0.0,), (1.0,), "resize", tuple("0123456789"))
    with pytest.raises(
        FormatError,
        match="onnx cannot hold this network: RuntimeError: no translation of this operation",
    ):
        write_format(model_of(subject.network, content), content, tmp_path, "onnx")


def test_exporters_are_silent(subject, tmp_path, capfd, recwarn):
    content = content_of(subject.network, (0.0,), (1.0,), "resize", tuple("0123456789"))
    for name in BUNDLE_FORMATS:
        write_format(model_of(subject.network, content), content, tmp_path, name)
    assert capfd.readouterr() == ("", "") and len(recwarn) == 0


def test_a_network_that_does_not_give_its_reported_accuracy_is_not_exported(subject, tmp_path):
    other = TrainedNetwork(
        subject.network,
        subject.splits,
        subject.config,
        {**subject.scores, "accuracy": subject.scores["accuracy"] - 0.05},
        {},
    )
    with pytest.raises(
        ValueError, match="nothing was exported: the checkpoint has accuracy .* have changed since"
    ):
        export(other, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_claimed_symmetry_that_does_not_hold_is_not_exported(subject, tmp_path, monkeypatch):
    honest = files.model_of

    def lopsided(network, content):
        model = honest(network, content)
        # within parity, beyond rounding
        model.network.stages[0][0].convolutions[0].weight.data[:, :, 0, 0] += 1e-5
        return model

    monkeypatch.setattr(exporting, "model_of", lopsided)
    monkeypatch.setattr("trainers.bundles.symmetry_check.OF_SPREAD", 1e-6)
    monkeypatch.setattr("trainers.bundles.symmetry_check.OF_PEAK", 0.0)
    with pytest.raises(
        ValueError, match="torch is less symmetric than the architecture: r90 changes its logits by"
    ):
        export(subject, tmp_path / "bundle")


def test_only_a_bundle_of_the_same_training_is_replaced(subject, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "BUNDLE_FORMATS", {"torch": BUNDLE_FORMATS["torch"]})
    (copied / "__pycache__").mkdir()
    assert export(subject, copied) == copied and not (copied / "model.onnx").exists()
    other = TrainedNetwork(
        subject.network,
        subject.splits,
        subject.config,
        subject.scores,
        {"study": "digits", "trial": 4},
    )
    with pytest.raises(
        ValueError, match="holds another bundle \\(study digits, trial 3\\).*--force"
    ):
        export(other, copied)
    export(other, copied, force=True)
    assert manifest_of(copied)["origin"]["trial"] == 4
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes.txt"):
        export(other, copied, force=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a").write_text("mine")
    with pytest.raises(ValueError, match="holds files, but no bundle"):
        export(subject, tmp_path / "letters", force=True)
    with pytest.raises(ValueError, match="is a file"):
        export(subject, tmp_path / "letters" / "a")


def test_a_bundle_that_another_process_writes_meanwhile_is_not_replaced(
    subject, bundle, tmp_path, monkeypatch
):
    """Each looked at the place while it was free."""
    other = replace(subject, origin={"study": "digits", "trial": 4})

    def slow(*arguments):
        shutil.copytree(bundle, tmp_path / "bundle")  # of trial 3
        return {"files": {}}

    monkeypatch.setattr(exporting, "_fill", slow)
    monkeypatch.setattr(exporting, "card", lambda manifest: "")
    with pytest.raises(ValueError, match="holds another bundle .*trial 3"):
        export(other, tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["bundle"] and verify(tmp_path / "bundle").good


def test_what_killed_exports_left_is_removed(subject, copied, monkeypatch):
    """Of this machine alone, and not where the process runs."""
    monkeypatch.setattr(exporting, "BUNDLE_FORMATS", {"torch": BUNDLE_FORMATS["torch"]})
    ended = subprocess.Popen(["true"])
    ended.wait()
    lost = [exporting._beside(copied, ending, str(ended.pid)) for ending in ("part", "old")]
    kept = [
        exporting._beside(copied, "part", str(os.getppid())),
        copied.with_name(f".{copied.name}.elsewhere.{ended.pid}.part"),
        copied.with_name(".notes.part"),
    ]
    for folder in (*lost, *kept):
        folder.mkdir()
    export(subject, copied)
    assert {*copied.parent.iterdir()} == {copied, *kept}


def test_a_full_disk_leaves_the_earlier_bundle(subject, copied, monkeypatch):
    def full(model, content, folder, name):
        (folder / "model.pt").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "write_format", full)
    with pytest.raises(OSError, match="could not be written .*No space left.*still there"):
        export(subject, copied)
    assert [path.name for path in copied.parent.iterdir()] == [copied.name] and verify(copied).good


FULL = """
import resource, sys
from pathlib import Path
from searchspace.architecture import Architecture
from trainers.bundles.formats import BUNDLE_FORMATS, content_of, model_of, write_format
from trainers.networks.networks import build

network = build(Architecture.parse("17px: 8k3@D4 max3/2p1, 8k3"), channels=1, classes=5).eval()
content = content_of(network, (0.2,), (0.3,), "resize", tuple("abcde"))
model = model_of(network, content)
resource.setrlimit(resource.RLIMIT_FSIZE, (12000, resource.RLIM_INFINITY))
for name in BUNDLE_FORMATS:
    try:
        write_format(model, content, Path(sys.argv[1]), name)
    except OSError as error:
        print(name, error.strerror)
"""


def test_no_format_ends_the_process_on_a_full_disk(tmp_path):
    """torch's own writers do: they end it from C++ when a file cannot grow."""
    pytest.importorskip("resource", reason="limits of file sizes are set as on Unix")
    here = files.Path(files.__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.splitlines() == [f"{name} File too large" for name in BUNDLE_FORMATS]


@pytest.mark.parametrize("fit", ["resize", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_does_what_training_does(fit, channels):
    network = {
        "channels": channels,
        "size": [13, 16],
        "stages": [],
        "entry": None,
        "head": {"kind": "none", "order": 1, "features": channels, "classes": 2},
    }
    model = Model(
        {
            "network": network,
            "mean": [0.0] * channels,
            "std": [1.0] * channels,
            "fit": fit,
            "classes": ["a", "b"],
        }
    )
    generator = torch.Generator().manual_seed(0)
    for size in ((13, 16), (20, 27), (8, 9), (7, 30), (14, 15), (28, 28)):
        for given in (1, 3):
            pixels = torch.randint(
                0, 256, (4, given, *size), generator=generator, dtype=torch.uint8
            )
            assert torch.equal(
                model.prepare(pixels),
                fit_images(_recolor(pixels, channels), (13, 16), fit).float() / 255,
            )


def test_model_refuses_other_images_with_a_remedy(bundle):
    model = runner(bundle, "torch")
    with pytest.raises(ValueError, match="torch.uint8; give floating point values in 0..1"):
        model(torch.zeros(1, 1, 17, 17, dtype=torch.uint8))
    with pytest.raises(ValueError, match="takes \\[batch, 1, 17, 17\\]"):
        model(torch.zeros(1, 1, 16, 17))
    with pytest.raises(ValueError, match="give uint8"):
        model.prepare(torch.zeros(1, 1, 16, 17))


def test_instrument_sees_a_corner_and_accepts_a_mean():
    images, elements = random_images(2, (9, 9)), movable(Group.parse("D4"), (9, 9))
    corner = changes(lambda x: x[:, :, 0, 1], images, elements)
    mean = changes(lambda x: x.mean((2, 3)), images, elements)
    assert len(elements) == 7 and not any(c.negligible or c.relative < 0.5 for c in corner.values())
    assert all(c.negligible and c.relative < 1e-3 for c in mean.values())
    assert [str(e) for e in movable(Group.parse("D8"), (9, 10))] == ["r180", "m", "mr180"]


def test_parity_is_absolute_for_usual_logits():
    assert parity_tolerance(torch.tensor([[3.0, -9.0]])) == 1e-4 and parity_tolerance(
        torch.tensor([[1000.0]])
    ) == pytest.approx(1e-2)


def test_broken_layouts_and_seen_orientations_are_told(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "BUNDLE_FORMATS", {"torch": BUNDLE_FORMATS["torch"]})
    architecture = Architecture.parse("16px: 3k3@C4 max3/2p1, 3k3")
    config = TrainingConfig(
        subject.config.data,
        Training(epochs=1, batch_size=32, augment=Augment(mirror=True)),
        Symmetry(group="D8"),
        seed=1,
    )
    splits = load_data(config.data, architecture.size)
    scores = train(architecture, config, tmp_path / "training", 1, splits=splits)
    network = start_training(architecture, config, tmp_path / "training", splits).network
    folder = export(
        TrainedNetwork(network, splits, config, scores.as_dict(), {}), tmp_path / "bundle"
    )
    rows = {row["element"]: row for row in manifest_of(folder)["elements"]}
    assert len(rows) == 15 and not any(row["exact"] for row in rows.values())
    assert (
        "shifted by 1 px" in rows["r90"]["lost"] and rows["r90"]["relative_change"]["torch"] > 1e-2
    )
    assert "not built in" in rows["m"]["lost"] and rows["r45"]["relative_change"] is None
    assert "`e`, `m`" in (folder / CARD).read_text()


def test_manifest_and_card_say_what_fills_the_corners_of_turned_images(bundle):
    manifest = manifest_of(bundle)
    training = manifest["training"]
    assert training["corners"] == "black" and "Corners" not in card(manifest)
    mirrored = {**manifest, "training": {**training, "corners": "reflect"}}
    line = "Corners of images turned by other angles than quarter turns: `{}`"
    assert line.format("reflect") in card(mirrored)
    assert line.format("black") in card({**manifest, "declared": "C8"})
    del training["corners"]  # as in bundles of earlier versions
    assert "Corners" not in card({**manifest, "declared": "C8"})
