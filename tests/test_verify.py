"""What `verify` finds in a bundle that was changed, torn or made by hand."""

import copy
import io
import pickle
import zipfile

import numpy as np
import onnx
import pytest
import torch
from test_export import EVERY_LAYER

from searchspace.architecture import Architecture
from support.bundles import (
    bundle,  # noqa: F401  (a fixture, as the others)
    copied,  # noqa: F401
    manifest_of,
    rehash,
    subject,  # noqa: F401
    untrained,
    write_manifest,
)
from trainers.bundles.formats import BUNDLE_FORMATS, CARD, MANIFEST
from trainers.bundles.verify import load_checked, verify
from trainers.networks.networks import build


def test_verify_accepts_a_bundle(bundle):
    report = verify(bundle, run_code=True)
    assert (
        report.good
        and report.not_run == ()
        and report.as_dict()["good"]
        and "the bundle is sound" in report.text()
    )
    assert {f.check for f in report.findings} == {
        "files",
        "signature",
        "agreement",
        "predict",
        *BUNDLE_FORMATS,
        *(f"{name} symmetry" for name in BUNDLE_FORMATS),
    }


def bad(report):
    assert not report.good and "damaged" in report.text()
    return {f.check: f.text for f in report.findings if f.good is False}


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
    assert (
        set(found) == {"torch", "agreement", "torch symmetry"}
        and "claimed, but broken: r90" in found["torch symmetry"]
    )


def test_verify_sees_what_is_missing_or_torn(copied):
    (copied / "model.onnx").unlink()
    (copied / "model.pt2").write_bytes((copied / "model.pt2").read_bytes()[:-100])
    report = verify(copied)
    assert [f.text for f in report.findings if f.good is False] == [
        "model.onnx is missing",
        next(f.text for f in report.findings if f.text.startswith("model.pt2 has changed")),
    ]
    rehash_one = manifest_of(copied)
    del rehash_one["files"]["model.onnx"], rehash_one["formats"]["onnx"]
    write_manifest(copied, rehash_one)
    rehash(copied)
    for run_code in (False, True):
        found = bad(verify(copied, run_code=run_code))
        assert (
            "does not run" in found["torch.export"]
            and "says nothing of the format onnx" in found["files"]
        )


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format_version": 1}', "damaged"),
        ('{"format_version": 9}', "format 9"),
    ],
)
def test_verify_refuses_what_is_no_bundle(tmp_path, text, message):
    with pytest.raises(ValueError, match="is not a bundle"):
        verify(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=message):
        verify(tmp_path)


class Attack:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def spoil_source(folder, marker):
    with open(folder / "model.py", "a") as file:
        file.write(f"\nopen({str(marker)!r}, 'w').close()\n")


def spoil_and_rehash(folder, marker):
    spoil_source(folder, marker)
    rehash(folder)


def spoil_and_leave_out(folder, marker):
    spoil_source(folder, marker)
    manifest = manifest_of(folder)
    del manifest["files"]["model.py"]
    write_manifest(folder, manifest)


def spoil_program(folder, marker):
    """An exported program whose example inputs are the attack."""
    path, attack = folder / "model.pt2", io.BytesIO()
    torch.save(((Attack(marker),), {}), attack)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(
                name, attack.getvalue() if name.endswith("sample_inputs/model.pt") else data
            )
    rehash(folder)


def spoil_weights(folder, marker):
    (folder / "model.pt").write_bytes(pickle.dumps(Attack(marker)))
    rehash(folder)


@pytest.mark.parametrize(
    "spoil", [spoil_source, spoil_and_rehash, spoil_and_leave_out, spoil_program, spoil_weights]
)
def test_nothing_of_a_bundle_is_executed(spoil, copied, tmp_path):
    marker = tmp_path / "executed"
    spoil(copied, marker)
    report = verify(copied)
    assert bad(report) and "is sound" not in report.text()
    try:
        load_checked(copied)
    except ValueError as error:
        assert "is damaged or was changed" in str(error)
    assert not marker.exists()


def test_the_attacks_of_these_tests_work(copied, tmp_path):
    """Each marker appears where the file is executed: the test above would see it."""
    for number, (spoil, name) in enumerate(
        [(spoil_and_rehash, "torch"), (spoil_program, "torch.export")]
    ):
        marker = tmp_path / f"executed{number}"
        spoil(copied, marker)
        verify(copied, run_code=True)
        assert marker.exists(), name


def test_by_default_an_untouched_bundle_is_checked_but_for_the_program(bundle):
    report = verify(bundle)
    assert (
        report.good
        and report.not_run == ("torch.export",)
        and report.as_dict()["not_run"] == ["torch.export"]
    )
    assert (
        "nothing wrong was found; not run: torch.export (--run-code" in report.text()
        and "is sound" not in report.text()
    )
    checked = {f.check for f in report.findings if f.good}
    assert {
        "torch",
        "safetensors",
        "onnx",
        "torch symmetry",
        "onnx symmetry",
        "agreement",
    } <= checked


def test_a_source_of_another_version_runs_only_when_told_to(copied):
    (copied / "model.py").write_text((copied / "model.py").read_text() + "\n# of another version\n")
    rehash(copied)
    assert (
        "not run: model.py is not what" in bad(verify(copied))["torch"]
        and "--run-code" in verify(copied).text()
    )
    assert verify(copied, run_code=True).good


def changed(manifest, *path, value):
    """A copy of the manifest with another value at the path."""
    manifest = copy.deepcopy(manifest)
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return manifest


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("files",), {}, "README.md is not among the files"),
        (("formats",), {}, "says nothing of the format torch"),
        (("formats", "onnx", "files"), [], "lists no file for the format onnx"),
    ],
)
def test_lists_with_gaps_are_not_sound(copied, path, value, message):
    write_manifest(copied, changed(manifest_of(copied), *path, value=value))
    for run_code in (False, True):
        report = verify(copied, run_code=run_code)
        assert message in report.text() and "is sound" not in report.text() and bad(report)["files"]
    with pytest.raises(ValueError, match="is damaged or was changed"):
        load_checked(copied)


@pytest.mark.parametrize(
    "file", [CARD, *(name for names in BUNDLE_FORMATS.values() for name in names)]
)
def test_each_file_must_be_listed(copied, file):
    manifest = manifest_of(copied)
    del manifest["files"][file]
    write_manifest(copied, manifest)
    assert f"{file} is not among the files" in bad(verify(copied))["files"]


@pytest.mark.parametrize(
    "path, value",
    [
        (("elements",), []),
        (("probe", "images"), 0),
        (("probe", "logits"), []),
        (("probe", "logits", 0), []),
        (("classes",), []),
        (("files", "../../elsewhere"), {"sha256": "0" * 64, "bytes": 1}),
        (("input", "height"), 18),
        (("formats", "tar"), {"files": ["a"]}),
    ],
)
def test_lists_that_do_not_fit_are_damage(copied, path, value):
    write_manifest(copied, changed(manifest_of(copied), *path, value=value))
    with pytest.raises(
        ValueError, match="is damaged: it is not what an export writes .*export the trial again"
    ):
        verify(copied)


def test_files_that_do_not_belong_there_are_named(copied):
    (copied / "image.png").write_bytes(b"")
    report = verify(copied)
    assert report.good and "not of the bundle: image.png" in report.text()
    (copied / "torch.py").write_text("")
    assert "Python loads it from this folder: torch.py" in bad(verify(copied))["files"]


def test_onnx_weights_in_other_files_are_refused(copied, tmp_path):
    model = onnx.load(copied / "model.onnx")
    tensor = model.graph.initializer[0]
    (tmp_path / "outside").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../outside")
    (copied / "model.onnx").write_bytes(model.SerializeToString())
    rehash(copied)
    for run_code in (False, True):
        assert (
            "weights from another file ('../outside')"
            in bad(verify(copied, run_code=run_code))["onnx"]
        )


def test_weights_are_run_by_the_network_of_the_architecture(copied):
    manifest = manifest_of(copied)
    manifest["content"]["network"]["stages"][0]["blocks"][0]["convolutions"][0]["out"] = 10**9
    write_manifest(copied, manifest)
    assert "is not what the architecture" in bad(verify(copied))["safetensors"]
    write_manifest(
        copied,
        {
            **manifest_of(copied),
            "architecture": manifest["architecture"].replace("4k3@D4", "4000k3@D4"),
        },
    )
    assert "more weights than the file holds" in bad(verify(copied))["safetensors"]


@pytest.mark.parametrize("text", EVERY_LAYER)
def test_bundles_of_every_kind_of_layer_are_checked_without_their_code(text, tmp_path):
    network = build(Architecture.parse(text), channels=1, classes=5).eval()
    report = verify(untrained(tmp_path, text, network))
    assert report.good and {f.check for f in report.findings if f.good} >= {
        "files",
        "torch",
        "safetensors",
        "agreement",
    }


ODD = [
    None,
    True,
    -1,
    10**400,
    1e308,
    "",
    "x" * 100_000,
    "\x00",
    [],
    {},
    [None],
    {"a": None},
    [[[[]]]],
]


def places(value, path=()):
    """The path of each value in a manifest; of long lists those of the first entry."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        entries = value.items() if isinstance(value, dict) else list(enumerate(value))[:1]
        for key, inner in entries:
            yield from places(inner, (*path, key))


def test_each_key_that_an_export_writes_has_its_type(copied):
    whole = manifest_of(copied)
    for key in whole:
        for value in (None, 3.5):
            write_manifest(copied, {**whole, key: value})
            with pytest.raises(ValueError, match=f"is damaged.*{key}"):
                verify(copied)


def test_a_manifest_with_odd_values_ends_in_one_sentence_or_findings(copied):
    """No value anywhere in a manifest brings another error than ValueError in one line."""
    whole, refused = manifest_of(copied), 0
    for file in {name for names in BUNDLE_FORMATS.values() for name in names}:
        (copied / file).write_bytes(b"")  # without its formats, a check takes milliseconds
    for path in places(whole):
        for value in ODD:
            write_manifest(copied, changed(whole, *path, value=value))
            try:
                assert bad(verify(copied)), (path, str(value)[:20])
            except ValueError as error:
                refused += 1
                assert (
                    "is damaged" in str(error) and "\n" not in str(error) and len(str(error)) < 1000
                ), (path, str(value)[:20])
    assert refused > 500


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        "null",
        '"text"',
        "",
        "\xff",
        "[" * 100_000,
        '{"a":' * 100_000,
        "NaN",
        '{"format_version": NaN}',
        '{"format_version": 1e999}',
        '{"format_version": true}',
        '{"format_version": "1"}',
        '{"format_version": ' + "9" * 5000 + "}",
        '{"format_version": 0}',
        '{"format_version": []}',
    ],
)
def test_any_other_text_is_a_damaged_manifest(tmp_path, text):
    (tmp_path / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="is damaged"):
        verify(tmp_path)
    with pytest.raises(ValueError, match="is damaged"):
        load_checked(tmp_path)


def changed_archive(folder):
    """The torch.export archive with one weight changed, and everything else as it was."""
    path, content = folder / "model.pt2", io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(content, "w") as after:
        for member in before.infolist():
            data = before.read(member)
            if member.filename.endswith("weights/weight_0"):
                data = bytes(4) + data[4:]
            after.writestr(member, data)
    path.write_bytes(content.getvalue())


def changed_graph(folder):
    """The ONNX graph with a bias that is as good as none changed."""
    graph = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    entry = next(e for e in graph.graph.initializer if e.name.endswith("linear.bias"))
    entry.raw_data = (np.frombuffer(entry.raw_data, np.float32) + np.float32(1e-6)).tobytes()
    (folder / "model.onnx").write_bytes(graph.SerializeToString())


def test_the_weights_of_every_format_are_those_of_safetensors(bundle):
    found = {finding.check: finding for finding in verify(bundle).findings}
    assert found["torch.export"].good is None and found["onnx"].good
    for name in ("torch.export", "onnx"):
        assert "weights are those of model.safetensors" in found[name].text


@pytest.mark.parametrize(
    "change, name, weight",
    [
        (changed_archive, "torch.export", "network.stages.0.0.convolutions.0.weight"),
        (changed_graph, "onnx", "network.head.linear.bias"),
    ],
)
def test_other_weights_in_one_format_are_seen_without_running_it(copied, change, name, weight):
    change(copied)
    rehash(copied)
    found = bad(verify(copied))
    assert set(found) == {name} and f"not those of model.safetensors: {weight}" in found[name]


def test_an_archive_that_shows_no_weights_is_not_compared(copied):
    path, content = copied / "model.pt2", io.BytesIO()
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(content, "w") as after:
        for member in before.infolist():
            if "/weights/" not in member.filename:
                after.writestr(member, before.read(member))
    path.write_bytes(content.getvalue())
    rehash(copied)
    found = {finding.check: finding for finding in verify(copied).findings}
    assert found["torch.export"].good is None and "not compared" in found["torch.export"].text


@pytest.mark.parametrize("claim", ["element", "exactness"])
def test_claims_are_those_of_the_architecture(copied, claim):
    """Whatever the weights do: r90 of a network that is not built for it."""
    manifest = manifest_of(copied)
    if claim == "element":
        manifest["elements"][0]["exact"] = False
    else:
        manifest["exactness"]["exact"] = False
    write_manifest(copied, manifest)
    rehash(copied)
    assert set(bad(verify(copied))) == {"claims"}
