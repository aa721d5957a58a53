"""What `verify` finds in a bundle that was changed, torn or made by hand."""

import json

import pytest
import torch

from bundles import bundle, copied, manifest_of, rehash, subject, write_manifest  # noqa: F401  (fixtures)
from trainers import bundle as files
from trainers.bundle import FORMATS, MANIFEST
from trainers.verify import verify


def test_verify_accepts_a_bundle(bundle):
    report = verify(bundle, run_code=True)
    assert report.good and report.not_run == () and report.as_dict()["good"] and "the bundle is sound" in report.text()
    assert {f.check for f in report.findings} == {"files", "agreement", *FORMATS, *(f"{name} symmetry" for name in FORMATS)}


def bad(report):
    assert not report.good and "damaged" in report.text()
    return {f.check: f.text for f in report.findings if not f.good}


def corrupt(folder):
    saved = torch.load(folder / "model.pt", weights_only=True)
    saved["state"]["network.stages.0.0.convolutions.0.weight"][0, 0, 0, 0] += 0.5
    torch.save(saved, folder / "model.pt")


def test_verify_sees_a_changed_weight_by_its_hash(copied):
    corrupt(copied)
    assert "model.pt has changed since the export" in bad(verify(copied))["files"]


def test_verify_sees_a_changed_weight_by_its_logits_and_symmetry(copied):
    corrupt(copied)
    rehash(copied)
    found = bad(verify(copied))
    assert set(found) == {"torch", "agreement", "torch symmetry"} and "claimed, but broken: r90" in found["torch symmetry"]


def test_verify_sees_what_is_missing_or_torn(copied):
    (copied / "model.onnx").unlink()
    (copied / "model.pt2").write_bytes((copied / "model.pt2").read_bytes()[:-100])
    report = verify(copied)
    assert [f.text for f in report.findings if not f.good] == [
        "model.onnx is missing", next(f.text for f in report.findings if f.text.startswith("model.pt2 has changed"))]
    rehash_one = manifest_of(copied)
    del rehash_one["files"]["model.onnx"], rehash_one["formats"]["onnx"]
    write_manifest(copied, rehash_one)
    rehash(copied)
    for run_code in (False, True):
        found = bad(verify(copied, run_code=run_code))
        assert "does not run" in found["torch.export"] and "says nothing of the format onnx" in found["files"]


@pytest.mark.parametrize("text, message", [("{", "damaged"), ("[]", "damaged"), ('{"format_version": 1}', "damaged"), ('{"format_version": 9}', "format 9")])
def test_verify_refuses_what_is_no_bundle(tmp_path, text, message):
    with pytest.raises(ValueError, match="is not a bundle"):
        verify(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=message):
        verify(tmp_path)
