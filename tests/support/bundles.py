"""A network trained on a few digits and its bundle, for tests of exporting and of verifying:
fixtures to import.
"""

import json
import shutil

import pytest

from searchspace.architecture import Architecture
from trainers.bundles.export import TrainedNetwork, export
from trainers.bundles.formats import (
    BUNDLE_FORMATS,
    CARD,
    MANIFEST,
    content_of,
    logits,
    model_of,
    sha256,
    write_format,
)
from trainers.bundles.manifest import FORMAT_VERSION
from trainers.bundles.symmetry_check import random_images
from trainers.data.datasets import load_data
from trainers.settings import Data, Symmetry, Training
from trainers.training.config import TrainingConfig
from trainers.training.train import start_training, train

EXACT = "17px: 4k3@D4 max3/2p1, 4k3 max3/2p1, 4k3 head=group_max"


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """An exact network, trained for two epochs on a few digits."""
    folder = tmp_path_factory.mktemp("training")
    config = TrainingConfig(
        Data(name="digits", train=300, validation=101),
        Training(epochs=2, batch_size=32),
        Symmetry(group="D4"),
        seed=3,
    )
    architecture = Architecture.parse(EXACT)
    splits = load_data(config.data, architecture.size)
    scores = train(architecture, config, folder, 2, splits=splits)
    return TrainedNetwork(
        start_training(architecture, config, folder, splits).network,
        splits,
        config,
        scores.as_dict(),
        {"study": "digits", "trial": 3},
    )


@pytest.fixture(scope="module")
def bundle(subject, tmp_path_factory):
    return export(subject, tmp_path_factory.mktemp("exports") / "00003")


@pytest.fixture
def copied(bundle, tmp_path):
    """A bundle that a test may spoil."""
    return shutil.copytree(bundle, tmp_path / "copied")


def manifest_of(folder):
    return json.loads((folder / MANIFEST).read_text())


def write_manifest(folder, manifest):
    (folder / MANIFEST).write_text(json.dumps(manifest))


def rehash(folder):
    """What a forger would do: hashes that fit the changed files."""
    manifest = manifest_of(folder)
    for name in manifest["files"]:
        manifest["files"][name] = {
            "sha256": sha256(folder / name),
            "bytes": (folder / name).stat().st_size,
        }
    write_manifest(folder, manifest)


def untrained(folder, text, network):
    """The folder, now a bundle of a grey network for five classes, in the two formats that every
    bundle has.
    """
    classes = tuple("abcde")
    content = content_of(network, (0.2,), (0.3,), "resize", classes)
    model = model_of(network, content)
    for name in ("torch", "safetensors"):
        write_format(model, content, folder, name)
    (folder / CARD).write_text("a card")
    probes = random_images(1, model.size)
    manifest = {
        "format_version": FORMAT_VERSION,
        "architecture": text,
        "declared": "C1",
        "classes": classes,
        "content": content,
        "input": {"channels": 1, "height": model.size[0], "width": model.size[1]},
        "elements": [],
        "formats": {name: {"files": BUNDLE_FORMATS[name]} for name in ("torch", "safetensors")},
        "refused": {"torch.export": "not tried", "onnx": "not tried"},
        "probe": {"images": len(probes), "logits": logits(model, probes).tolist()},
        "files": {path.name: None for path in folder.iterdir()},
    }
    write_manifest(folder, manifest)
    rehash(folder)
    return folder
