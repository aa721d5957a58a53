"""What lies in a bundle beside its formats: the network in integers, signatures, the block that
model hubs read.
"""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from searchspace.architecture import Architecture
from searchspace.groups import Group
from support.bundles import bundle, copied, manifest_of, rehash, subject  # noqa: F401  (fixtures)
from trainers.bundles import export as exporting
from trainers.bundles.export import export
from trainers.bundles.formats import FormatError, content_of, model_of, onnx_runner, write_format
from trainers.bundles.quantised import INT8_FILE, integer_equal, write_int8
from trainers.bundles.symmetry_check import movable, random_images
from trainers.bundles.verify import verify
from trainers.networks.networks import build


@pytest.fixture(scope="module")
def quantised(subject, tmp_path_factory):
    """A bundle with integers, without the formats that take seconds to write."""
    honest = exporting.write_format

    def writer(model, content, folder, name):
        if name == "torch.export":
            raise FormatError("not tried")
        honest(model, content, folder, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "write_format", writer)
        return export(subject, tmp_path_factory.mktemp("int8") / "bundle", quantize=True)


def finding(report, check):
    (found,) = [f for f in report.findings if f.check == check]
    return found


def test_integers_are_as_good_and_exact_to_the_last_bit(quantised):
    entry = manifest_of(quantised)["int8"]
    assert entry["integer_equal"] == {str(e): True for e in Group.parse("D4").elements[1:]}
    for score in entry["scores"].values():
        assert abs(score["int8"] - score["float"]) < 0.06
    assert entry["images"] == 101 and entry["calibration_images"] == 256
    found = finding(verify(quantised), "int8")
    assert found.good and "integer outputs equal on 16 images under r90 r180" in found.text
    card = (quantised / "README.md").read_text()
    assert (
        "## In 8-bit integers" in card
        and f"{100 * entry['scores']['accuracy']['int8']:.2f} %" in card
    )


def test_an_element_that_integers_lose_is_named(tmp_path):
    architecture = Architecture.parse("9px: 4k3@C4, 4k3 head=none")
    network = build(architecture, channels=1, classes=5, seed=0)
    for _ in range(3):
        network(torch.rand(16, 1, 9, 9) * 4 - 2)
    content = content_of(network, (0.4,), (0.25,), "resize", tuple("abcde"))
    write_format(model_of(network, content), content, tmp_path, "onnx")
    write_int8(tmp_path, torch.randint(0, 256, (64, 1, 9, 9), dtype=torch.uint8))
    run, elements = onnx_runner(tmp_path, INT8_FILE), movable(Group.parse("C4"), (9, 9))
    assert not any(integer_equal(run, random_images(1, (9, 9)), elements).values())


def test_verify_names_an_element_that_is_no_longer_equal(quantised, subject, tmp_path):
    folder = shutil.copytree(quantised, tmp_path / "copy")
    shutil.copy(folder / "model.onnx", folder / INT8_FILE)  # exact, but not to the last bit
    rehash(folder)
    found = finding(verify(folder), "int8")
    assert not found.good and "equal at the export, but not here: " in found.text


def test_hubs_read_task_and_scores(bundle, quantised):
    text = (bundle / "README.md").read_text()
    _, block, rest = text.split("---\n", 2)
    front, manifest = yaml.safe_load(block), manifest_of(bundle)
    assert front["pipeline_tag"] == "image-classification" and rest.startswith(
        "\n# Image classifier"
    )
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "validation"}
    assert result["metrics"][0]["value"] == pytest.approx(manifest["scores"]["accuracy"], abs=1e-6)


@pytest.fixture
def keys(tmp_path):
    """Two pairs of keys: (private, public) files, the first in OpenSSH's form, the second PEM."""
    reason = "signatures need the extra `sign`: pip install cryptography"
    pytest.importorskip("cryptography", reason=reason)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    pairs = []
    for name, private, public in (
        ("ssh", PrivateFormat.OpenSSH, (Encoding.OpenSSH, PublicFormat.OpenSSH)),
        ("pem", PrivateFormat.PKCS8, (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)),
    ):
        key, folder = Ed25519PrivateKey.generate(), tmp_path / name
        folder.mkdir()
        (folder / "key").write_bytes(key.private_bytes(Encoding.PEM, private, NoEncryption()))
        (folder / "key.pub").write_bytes(key.public_key().public_bytes(*public))
        pairs.append((folder / "key", folder / "key.pub"))
    return pairs


def test_a_signature_says_who_made_a_bundle(copied, keys):
    from trainers.bundles.signing import sign_bundle

    (private, public), (other, _) = keys
    found = finding(verify(copied, trusted=public), "signature")
    assert not found.good and "is not signed" in found.text
    assert "does not say who made it" in verify(copied, run_code=True).text()
    sign_bundle(copied, private)
    report = verify(copied, trusted=public, run_code=True)
    assert report.good and f"signed by the key in {public}" in report.text()
    assert finding(verify(copied), "signature").good is None
    sign_bundle(copied, other)
    assert "is not by the key" in finding(verify(copied, trusted=public), "signature").text


def test_a_forger_cannot_keep_the_signature(copied, keys):
    from trainers.bundles.signing import sign_bundle

    (_, _), (private, public) = keys
    sign_bundle(copied, private)
    (copied / "README.md").write_text("Better scores.")
    rehash(copied)
    report = verify(copied, trusted=public)
    assert not report.good and finding(report, "files").good
    assert "bundle.json was changed since" in finding(report, "signature").text


def test_what_is_no_key_is_refused_before_anything_is_written(subject, bundle, keys, tmp_path):
    (private, public), _ = keys
    with pytest.raises(ValueError, match=r"key\.pub holds no private Ed25519 key .*ssh-keygen"):
        export(subject, tmp_path / "bundle", key=public)
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(ValueError, match="holds no public Ed25519 key"):
        verify(bundle, trusted=private)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        verify(bundle, trusted=tmp_path / "gone")


def test_without_the_library_the_extra_is_named(bundle, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ValueError, match=r"pip install 'equisearch\[sign\]'"):
        verify(bundle, trusted=tmp_path / "key.pub")
