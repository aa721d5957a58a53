"""`equisearch export` and `equisearch verify` on a study of an image folder."""

import json
import shutil

import pytest
import torch
from PIL import Image

from searchspace.architecture import Architecture
from studies import config
from studies.errors import ExistsError, StudyError
from studies.results.export_trial import export_trial, verify_bundle
from studies.results.tables import open_records
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support.isolation import accuracies
from trainers.bundles.formats import BUNDLE_FORMATS, MANIFEST

STUDY = """
data: {folder: images, fit: pad}
training: {epochs: 5, batch_size: 32}
symmetry: {group: C4}
space: {backbone: "3k3 *, 3k3", family: [steerable], group: [C4], input_size: [9],
        layout: [max3/2p1], head: [group_max], equivariance_loss: {kind: [none]},
        width: {match: fields, to: 3}}
search: {sampler: random, trials: 1, rungs: [], seed: 1}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Digits as PNG files of 8 x 8 pixels, in a folder per class; the colour tells the class, so
    that little training suffices.
    """
    from sklearn.datasets import load_digits

    digits, top = load_digits(), tmp_path_factory.mktemp("data")
    for number in range(180):
        label = digits.target[number] % 3
        folder = top / "images" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((digits.images[number] * 15).astype("uint8"))
        dark = grey.point(lambda value: value // 4)
        Image.merge("RGB", [grey if channel == label else dark for channel in range(3)]).save(
            folder / f"{number}.png"
        )
    return top


@pytest.fixture(scope="module")
def studied(images, tmp_path_factory):
    """A study with one complete trial."""
    directory = tmp_path_factory.mktemp("runs") / "study"
    with SearchDriver.create(
        directory, config.parse(STUDY, beside=images), channels=3, classes=3
    ) as driver:
        run_in_process(driver)
    return directory


@pytest.fixture
def study(studied, tmp_path):
    """A copy of the study that a test may spoil."""
    return shutil.copytree(studied, tmp_path / "study")


@pytest.fixture(scope="module")
def exported(studied):
    return export_trial(studied, 0)


def test_trial_is_exported_under_the_study_with_every_format(studied, exported):
    assert exported == studied / "exports" / "00000"
    manifest = json.loads((exported / MANIFEST).read_text())
    assert set(manifest["formats"]) == set(BUNDLE_FORMATS) and manifest["refused"] == {}
    record = open_records(studied)[1][0]
    scores = {name: value for name, value in record.scores.items() if name != "learned"}
    assert manifest["scores"] == scores and manifest["architecture"] == record.architecture
    assert manifest["origin"]["trial"] == 0 and manifest["classes"] == [
        "class0",
        "class1",
        "class2",
    ]
    assert verify_bundle(exported).good


@pytest.mark.slow
def test_strangers_scripts_get_the_accuracy_in_the_journal(studied, exported, tmp_path):
    check_accuracy(studied, exported, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset, channels", [("mnist", 1), ("folder", 3)])
def test_a_search_on_real_images_ends_in_files_with_the_reported_accuracy(
    preset, channels, request, tmp_path
):
    data = (
        {"data.root": str(request.getfixturevalue("mnist_root"))}
        if preset == "mnist"
        else {"data.folder": str(request.getfixturevalue("cifar_folder")), "data.validation": 500}
    )
    settings = config.load_study(
        preset,
        {**data, "data.train": 2000, "search.trials": 1, "search.rungs": [], "training.epochs": 2},
    )
    with SearchDriver.create(tmp_path / "study", settings, channels=channels, classes=10) as driver:
        run_in_process(driver)
    bundle = export_trial(tmp_path / "study", 0)
    assert verify_bundle(bundle).good
    check_accuracy(tmp_path / "study", bundle, tmp_path)


def check_accuracy(directory, bundle, folder):
    """Asserts that scripts without this program get the accuracy that the journal reports, from
    every format.
    """
    from trainers.data.datasets import load_data

    settings, records = open_records(directory)
    validation = load_data(
        settings.data, Architecture.parse(records[0].architecture).size
    ).validation
    assert accuracies(bundle, validation.pixels, validation.labels, folder) == pytest.approx(
        [records[0].scores["accuracy"]] * 3, abs=1e-12
    )


def test_another_place_and_replacing(study, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trainers.bundles.export.BUNDLE_FORMATS", {"torch": BUNDLE_FORMATS["torch"]}
    )
    notes = []
    out = export_trial(study, 0, tmp_path / "deep" / "out", note=notes.append)
    assert out == tmp_path / "deep" / "out" and len(notes) == 3 and "no onnx file" in notes[-1]
    export_trial(study, 0, out)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["origin"]["trial"] = 7
    (out / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ExistsError, match="another bundle.*trial 7.*--force"):
        export_trial(study, 0, out)
    export_trial(study, 0, out, force=True)


@pytest.mark.parametrize("number", [1, 99, -1])
def test_unknown_trial(study, number):
    with pytest.raises(StudyError, match=f"there is no trial {number} in .*trials 0 to 0"):
        export_trial(study, number)


@pytest.mark.parametrize("code, state", [(2, "stopped"), (3, "failed")])
def test_only_complete_trials(study, code, state):
    journal = study / "optuna.journal"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if line["op_code"] == 6 and line["state"] == 1:
            line["state"] = code
    journal.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    with pytest.raises(
        StudyError,
        match=f"trial 0 is {state}.*; only complete trials are exported: there is none yet",
    ):
        export_trial(study, 0)


def test_trial_without_checkpoint(study):
    for path in (study / "trials" / "00000").glob("*.pt"):
        path.unlink()
    with pytest.raises(
        StudyError, match="trial 0 has no checkpoint in .*00000 .it is complete.; choose"
    ):
        export_trial(study, 0)


def test_torn_checkpoint(study):
    path = study / "trials" / "00000" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(StudyError, match="is of epoch 4, its scores are of epoch 5"):
        export_trial(study, 0)


def test_data_that_are_gone(study):
    text = (study / "study.yaml").read_text()
    (study / "study.yaml").write_text(text.replace("/images", "/moved"))
    with pytest.raises(StudyError, match="trial 0 cannot be loaded: .*moved"):
        export_trial(study, 0)


def test_data_that_have_changed(study, images, tmp_path):
    """Two folders exchange their names: other labels and another accuracy, so a card would not be
    true.
    """
    first, second, aside = (images / "images" / name for name in ("class0", "class1", "aside"))

    def exchange():
        for source, target in ((first, aside), (second, first), (aside, second)):
            source.rename(target)

    exchange()
    try:
        with pytest.raises(
            StudyError,
            match="trial 0: nothing was exported: the checkpoint has accuracy .* have changed "
            "since",
        ):
            export_trial(study, 0, tmp_path / "out")
    finally:
        exchange()
    assert not (tmp_path / "out").exists()


def test_no_study_and_no_bundle(tmp_path):
    with pytest.raises(StudyError, match="holds no study"):
        export_trial(tmp_path, 0)
    with pytest.raises(StudyError, match="is not a bundle"):
        verify_bundle(tmp_path)


def test_verification_fails_on_a_changed_weight(exported, tmp_path):
    spoiled = shutil.copytree(exported, tmp_path / "bundle")
    saved = torch.load(spoiled / "model.pt", weights_only=True)
    next(iter(saved["state"].values())).flatten()[0] += 1
    torch.save(saved, spoiled / "model.pt")
    report = verify_bundle(spoiled)
    assert (
        not report.good
        and "model.pt has changed" in report.text()
        and report.as_dict()["good"] is False
    )
