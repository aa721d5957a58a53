"""Labels that are not one class of each image: several labels, and numbers."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, mean_absolute_error, r2_score, roc_auc_score

from searchspace.groups import Group
from searchspace.recipe import Candidate
from studies import load_study, open_study, start
from studies.errors import StudyError
from studies.evidence.intervals import Evidence
from studies.journal.reader import read_trials
from studies.results.export_trial import export_trial
from studies.results.predictions import predict_images
from studies.results.report import write_report
from studies.results.retrain import front_jobs, run_jobs
from studies.search.scores import rung_margin
from studies.tasks import with_task
from studies.workers.declaration import judged
from trainers.bundles.formats import logits, runner
from trainers.bundles.verify import verify
from trainers.data.datasets import load_data
from trainers.data.tasks import Outputs
from trainers.instruments import twosample
from trainers.instruments.probe import probe
from trainers.instruments.tasks.kinds import as_kinds
from trainers.instruments.tasks.replicates import REPLICATES, read_replicates
from trainers.instruments.tasks.scoring import main_score, main_scores, resamples, side_scores
from trainers.networks.plain import mean_logits
from trainers.settings import Columns, Data, Symmetry, Training, as_identity
from trainers.training.class_balance import class_weights
from trainers.training.config import TrainingConfig
from trainers.training.losses import task_loss
from trainers.training.train import train

COUNT = 80
SMALL = {
    "training.epochs": 2,
    "training.batch_size": 20,
    "training.device": "cpu",
    "search.trials": 2,
    "search.rungs": [1],
    "search.least_steps": None,
    "space.input_size": 8,
    "symmetry.group": "C4",
    "search.first": ["8px: 3k3@C4, 3k3", "8px: 3k3, 3k3"],
    "controls": "none",
    "resources.workers": 1,
}


@pytest.fixture(scope="module")
def arrays():
    """Images of a bright blob whose size is the target and whose pattern gives two labels."""
    random = np.random.default_rng(0)
    images, sizes = np.zeros((COUNT, 8, 8), np.uint8), random.uniform(1, 3, COUNT)
    labels = (random.random((COUNT, 2)) < [0.5, 0.3]).astype(np.int64)
    rows, columns = np.mgrid[:8, :8] - 3.5
    for n, (size, (bright, striped)) in enumerate(zip(sizes, labels)):
        image = 150 * np.exp(-(rows**2 + columns**2) / (2 * size**2)) + 60 * bright
        images[n] = np.clip(image + 40 * striped * (np.arange(8) % 2), 0, 255)
    return images, labels, 1000 + 50 * sizes


@pytest.fixture(scope="module")
def npz(arrays, tmp_path_factory):
    """The path of an archive for each task."""
    folder = tmp_path_factory.mktemp("arrays")
    images, labels, numbers = arrays
    np.savez(folder / "multilabel.npz", images=images, labels=labels)
    np.savez(folder / "regression.npz", images=images, labels=numbers)
    return folder


def study_of(path, task="auto", **overrides: Any):
    settings = {"data": {"files": str(path), "task": task}, **SMALL, **overrides}
    return load_study("folder", settings)


@pytest.fixture(scope="module", params=["multilabel", "regression"])
def done(request, npz, tmp_path_factory):
    """(task, directory) of a study of two trials."""
    directory = tmp_path_factory.mktemp("studies") / request.param
    start(study_of(npz / f"{request.param}.npz"), directory, probe=False)
    return request.param, directory


def test_scores_are_scikit_learns():
    random = torch.Generator().manual_seed(0)
    outputs = torch.randn(50, 3, generator=random)
    labels = (torch.rand(50, 3, generator=random) < 0.4).float()
    given = Outputs("multilabel", ("a", "b", "c"))
    values = side_scores(given, outputs, labels)
    assert main_score("multilabel", outputs, labels) == pytest.approx(
        roc_auc_score(labels, outputs, average="macro")
    )
    assert values["f1"] == pytest.approx(f1_score(labels, outputs > 0, average="macro"))
    targets = outputs + 0.3 * torch.randn(50, 3, generator=random)
    given = Outputs("regression", ("a", "b", "c"), (1.0, 2.0, 3.0), (10.0, 1.0, 0.1))
    assert main_score("regression", outputs, targets) == pytest.approx(r2_score(targets, outputs))
    errors = np.asarray(mean_absolute_error(targets, outputs, multioutput="raw_values"))
    found = side_scores(given, outputs, targets)
    expected = (errors * np.array([10, 1, 0.1])).tolist()
    assert [found[f"mae {name}"] for name in "abc"] == pytest.approx(expected, rel=1e-5)
    assert main_score("regression", -targets, targets) == 0  # bounded below


def test_auroc_counts_ties_half_and_resamples_are_the_images_drawn_so_often():
    outputs = torch.tensor([[0.0], [0.0], [1.0], [1.0], [2.0]])
    labels = torch.tensor([[0.0], [1.0], [0.0], [1.0], [1.0]])
    counts = resamples(5)
    found = main_scores("multilabel", outputs, labels, counts)
    for row, score in zip(counts[:40], found[:40]):
        drawn = torch.repeat_interleave(torch.arange(5), row.long())
        if 0 < labels[drawn].sum() < 5:
            expected = roc_auc_score(labels[drawn, 0], outputs[drawn, 0])
            assert float(score) == pytest.approx(expected)


def test_losses_are_those_of_torch():
    outputs, labels = torch.randn(6, 2), torch.tensor([[0.0, 1.0]] * 6)
    expected = torch.nn.functional.binary_cross_entropy(outputs.sigmoid(), labels)
    assert float(task_loss("multilabel", outputs, labels)) == pytest.approx(float(expected))
    weighted = task_loss("multilabel", outputs, labels, torch.tensor([5.0, 1.0]))
    assert float(weighted) == pytest.approx(float(expected))  # no image has the first label
    assert float(task_loss("regression", outputs, outputs + 2)) == pytest.approx(4)


def test_mean_of_networks_is_that_of_probabilities_or_values():
    members = [torch.randn(4, 3) for _ in range(3)]
    mean = torch.stack([m.sigmoid() for m in members]).mean(0)
    assert torch.allclose(mean_logits(members, "multilabel").sigmoid(), mean, atol=1e-6)
    assert torch.equal(mean_logits(members, "regression"), torch.stack(members).mean(0))


def test_targets_are_standardised_by_the_training_images(npz, arrays):
    splits = load_data(Data(files=npz / "regression.npz", task="regression"), (8, 8))
    assert float(splits.train.labels.mean()) == pytest.approx(0, abs=1e-5)
    assert float(splits.train.labels.std(correction=0)) == pytest.approx(1, abs=1e-5)
    back = splits.outputs.given(splits.validation.labels)
    assert (
        set(back[:, 0].round(decimals=2).tolist())
        <= {round(float(np.float32(v)), 2) for v in arrays[2]}
        or torch.isin(back[:, 0].round(), torch.tensor(arrays[2]).float().round()).all()
    )


def test_weights_of_labels_are_the_ratio_of_images_without_to_with(npz):
    splits = load_data(Data(files=npz / "multilabel.npz", task="multilabel"), (8, 8))
    positives = splits.train.labels.sum(0)
    weights = class_weights("balanced", splits)
    assert weights is not None
    assert torch.allclose(weights, (len(splits.train) - positives) / positives)
    named = class_weights({"label 1": 3.0}, splits)
    assert named is not None and named.tolist() == [1.0, 3.0]


def test_tasks_are_searched_tested_exported_and_predicted(done, arrays, tmp_path):
    task, directory = done
    results = open_study(directory)
    name = {"multilabel": "AUROC", "regression": "R2"}[task]
    row = results.front.rows[0]
    assert row["scores"]["score"] == name and 0 <= row["scores"]["accuracy"] <= 1
    assert results.study.data.task == task  # no longer auto
    jobs = front_jobs(results.study, directory, seeds=2, trials=[0])
    tested = list(run_jobs(jobs, results.study, directory))
    assert all(result["test"]["score"] == name for result in tested)
    bundle = export_trial(directory, 0, retrained="mean-of-2")
    assert verify(bundle, run_code=True).good
    card = (bundle / "README.md").read_text()
    assert f"{name} under C4" in card and "accuracy under" not in card
    page = write_report(directory).read_text()
    assert f"symmetry {name}" in page and "symmetry accuracy" not in page
    held = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert held is not None
    trials = json.loads(held[1])["trials"]
    (chart,) = next(t for t in trials if t["n"] == row["trial"])["elements"]
    shown, scores = dict(chart["rows"]), row["scores"]
    assert chart["name"] == name and shown["e"] == pytest.approx(100 * scores["accuracy"], abs=0.01)
    moved = sum(shown[e] for e in ("r90", "r180", "r270")) / 3
    assert moved == pytest.approx(100 * scores["symmetry_accuracy"], abs=0.02)
    Image.fromarray(arrays[0][0]).save(tmp_path / "image.png")
    torch_, onnx = (
        predict_images(bundle, [tmp_path], runtime=runtime).rows[0] for runtime in ("torch", "onnx")
    )
    key = "probabilities" if task == "multilabel" else "values"
    assert torch_[key] == pytest.approx(onnx[key], rel=1e-4)
    if task == "regression":
        assert 900 < torch_["values"]["target"] < 1300  # in the user's unit
    else:
        assert torch_["labels"] == [n for n, p in torch_["probabilities"].items() if p >= 0.5]


def test_exported_values_are_those_of_the_network_in_the_users_unit(done):
    task, directory = done
    if task != "regression":
        return
    bundle = export_trial(directory, 0)
    manifest = json.loads((bundle / "bundle.json").read_text())
    splits = load_data(open_study(directory).study.data, (8, 8))
    values = logits(runner(bundle, "onnx"), splits.validation.pixels)
    given = splits.outputs.given(splits.validation.labels)
    mae = float((values - given).abs().mean())
    assert mae == pytest.approx(manifest["main_score"]["beside"]["mae"], rel=1e-3)
    turned = logits(runner(bundle, "onnx"), splits.validation.pixels.rot90(1, (2, 3)))
    assert float((turned - values).abs().max()) < 1e-3 * float(values.std())  # exactly invariant


def test_scores_have_errors_and_trials_are_compared_on_equal_resamples(done):
    _, directory = done
    a, b = read_trials(directory)[:2]
    evidence = Evidence.of(directory)
    found = evidence.difference(a, b, "accuracy")
    assert found is not None and found.over == "images"
    same = evidence.difference(a, a, "accuracy")
    assert same is not None and same.half == 0
    scores = a.scores or {}
    margin = rung_margin(scores, 0.95)
    assert margin[0] == pytest.approx(1.96 * 2**0.5 * scores["accuracy_error"], rel=1e-3)
    kept = read_replicates(directory / "trials" / "00000")
    assert kept is not None and len(kept.scores["accuracy"]) == 200
    (directory / "trials" / "00000" / REPLICATES).write_text('{"format": 1}')
    assert read_replicates(directory / "trials" / "00000") is None
    unpaired = evidence.difference(a, b, "accuracy")
    assert unpaired is not None and unpaired.over == "images, unpaired"


def test_csv_of_columns_names_and_numbers(arrays, tmp_path):
    images, labels, numbers = arrays
    names = ["mass", "nodule"]
    with open(tmp_path / "table.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", *names, "findings", "age", "height"])
        for n, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{n}.png")
            found = "|".join(name for name, has in zip(names, labels[n]) if has)
            table.writerow([f"{n}.png", *labels[n], found, numbers[n], 2 * numbers[n]])
    files = tmp_path / "table.csv"
    several = load_data(
        Data(files=files, task="multilabel", columns=Columns(label=tuple(names))), (8, 8)
    )
    single = load_data(
        Data(files=files, task="multilabel", columns=Columns(label="findings")), (8, 8)
    )
    assert several.classes == single.classes == ("mass", "nodule")
    assert torch.equal(several.train.labels, single.train.labels)
    assert torch.equal(several.train.pixels, single.train.pixels)
    both = load_data(
        Data(files=files, task="regression", columns=Columns(label=("age", "height"))), (8, 8)
    )
    assert both.classes == ("age", "height")
    assert both.scale[1] == pytest.approx(2 * both.scale[0])
    assert load_data(Data(files=files, task="auto", columns=Columns(label="age")), (8, 8)).task == (
        "regression"
    )
    with pytest.raises(ValueError, match="columns.label names 2 columns"):
        load_data(Data(files=files, columns=Columns(label=tuple(names))), (8, 8))


def test_parquet_of_several_columns(arrays, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    images, labels, _ = arrays
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{n}.png")
    table = pa.table(
        {
            "image": [(tmp_path / f"{n}.png").read_bytes() for n in range(COUNT)],
            "a": labels[:, 0],
            "b": labels[:, 1],
            "labels": labels.tolist(),
        }
    )
    parquet.write_table(table, tmp_path / "table.parquet")
    files = tmp_path / "table.parquet"
    columns = load_data(
        Data(files=files, task="multilabel", columns=Columns(label=("a", "b"))), (8, 8)
    )
    lists = load_data(Data(files=files, task="auto", columns=Columns(label="labels")), (8, 8))
    assert columns.classes == ("a", "b") and lists.task == "multilabel"
    assert torch.equal(columns.train.labels, lists.train.labels)


@pytest.mark.parametrize(
    "labels, task, why",
    [
        (np.eye(4, dtype=int)[np.arange(40) % 4], "auto", "one 1 each, which may be classes"),
        (np.arange(40.0), "auto", "whole numbers of a floating point type"),
        (np.zeros((40, 2, 2)), "regression", r"shape \(40, 2, 2\), and data.task is regression"),
        (np.arange(40) % 3, "multilabel", r"shape \(40,\), and data.task is multilabel"),
        (np.array([np.nan] + [1.0] * 39), "regression", "image 0 of .* is nan in column 0"),
        (np.ones(40), "regression", "'target' is 1.0 for every image of the train split"),
        (np.array([[0, 1]] * 20 + [[0, 0]] * 20), "multilabel", "no image with the label 'label 0"),
        (np.array([[1, 2]] * 40), "multilabel", "image 0 of .* is 2 in column 1"),
        (np.array([[1, 0]] + [[0, 1], [0, 0], [0, 0]] * 13), "multilabel", "split.* 'label 0'"),
        (np.arange(40) / 7, "classification", "to predict numbers say .data: {task: regression"),
        (np.array([[1, 1]] * 40), "classification", "say .data: {task: multilabel}"),
    ],
)
def test_labels_that_do_not_suit_are_refused(labels, task, why, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "bad.npz", images=images, labels=labels)
    with pytest.raises(ValueError, match=why):
        load_data(Data(files=tmp_path / "bad.npz", task=task), (8, 8))


def test_settings_that_do_not_suit_a_task_are_refused_before_a_trial(npz, tmp_path):
    files = npz / "regression.npz"
    for overrides, why in (
        ({"objectives": ["balanced_accuracy"]}, "objective balanced_accuracy is about classes"),
        ({"training.class_weights": "balanced"}, "class_weights is for classes"),
    ):
        with pytest.raises(StudyError, match=why):
            start(study_of(files, **overrides), tmp_path / "never")
        assert not (tmp_path / "never").exists()
    digits = load_study("quickstart", {"data.task": "regression"})
    with pytest.raises(StudyError, match="has one class for each image"):
        start(digits, tmp_path / "never")


def test_arrays_in_memory_train_with_folds(arrays, tmp_path):
    images, _, numbers = arrays
    study = study_of("unused", "regression", **{"data.folds": 2, "search.trials": 1})
    study = study.model_copy(update={"data": study.data})
    results = start(study, tmp_path / "study", data=(images, numbers), probe=False)
    scores = results.front.rows[0]["scores"]
    assert scores["num_images"] == COUNT - COUNT // 5 and scores["accuracy_error"] > 0
    kept = read_replicates(tmp_path / "study" / "trials" / "00000")
    assert kept is not None and kept.images == scores["num_images"]


def test_every_equivariance_loss_trains_a_task(npz, tmp_path):
    data = Data(files=npz / "multilabel.npz", task="multilabel")
    training = Training(epochs=1, batch_size=20, class_weights="balanced", device="cpu")
    for loss in ("layerwise:0.1", "latent:0.1", "label:1", "projection:0.1"):
        candidate = Candidate.parse(f"8px: 4k3, 4k3 loss={loss}")
        config = TrainingConfig(data, training, Symmetry(group="C4"), recipe=candidate.recipe)
        scores = train(candidate.architecture, config, tmp_path / loss, 1)
        assert 0 <= scores.symmetry_accuracy <= 1


def test_a_study_of_classes_says_nothing_of_tasks():
    assert with_task(load_study("quickstart")) == load_study("quickstart")
    kept = as_identity(Data(name="digits", columns=Columns()), set())
    assert not {"task", "columns"} & kept.keys()  # earlier checkpoints stay valid
    set_ = as_identity(Data(files=Path("a.csv"), columns=Columns(label="x")), set())
    assert "separator" not in set_["columns"]


@pytest.fixture(scope="module")
def oriented():
    """Images of a bar whose place along the height is the target, at random along the width; labels
    say whether it lies above, and whether it is bright.
    """
    random = np.random.default_rng(1)
    rows, columns = random.integers(0, 14, 400), random.integers(0, 14, 400)
    bright = random.random(400) < 0.5
    images = random.integers(0, 40, (400, 16, 16)).astype(np.uint8)
    for image, row, column, light in zip(images, rows, columns, bright):
        image[row : row + 2, column : column + 2] = 240 if light else 150
    return images, rows, np.stack([rows < 7, bright], 1).astype(np.int64)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_the_declaration_is_checked_of_targets_and_labels(oriented, task, tmp_path, monkeypatch):
    monkeypatch.setattr(twosample, "STEPS", 10)  # of what these labels do not ask
    images, rows, labels = oriented
    given = rows.astype(float) if task == "regression" else labels
    np.savez(tmp_path / "a.npz", images=images, labels=given)
    data = Data(files=tmp_path / "a.npz", task=task, test=40)
    found = probe(data, Group.parse("D2"), images=400, joint=True)
    of = {e.element: e for e in found.elements}
    # `m` mirrors along the width, which no label depends on; the others exchange above and below
    assert of["m"].labels == "kept" and of["m"].inputs == "symmetric"
    assert "collide" in {of["r180"].labels, of["mr180"].labels}
    checked = judged(found, Group.parse("D2"))
    noun = {"regression": "range target", "multilabel": "label set"}[task]
    assert f"{noun} " in checked.warnings[0] and "contradict the declared D2" in checked.warnings[0]
    assert "class" not in checked.warnings[0] and checked.kind in checked.warnings[0]
    names = found.classes
    if task == "regression":
        assert len(names) == 4 and names[0].startswith("target up to 3")
    else:
        assert set(names) == {"without labels", "label 0", "label 1", "label 0 + label 1"}


def test_rare_sets_of_labels_and_several_targets_are_kinds_too():
    labels = torch.tensor([[0.0, 0.0]] * 30 + [[1.0, 0.0]] * 25 + [[1.0, 1.0]] * 3)
    kinds, names = as_kinds(Outputs("multilabel", ("a", "b")), labels)
    assert names == ("without labels", "a", "of other labels")
    assert kinds.bincount().tolist() == [30, 25, 3]
    values = torch.stack([torch.arange(40.0), torch.arange(40.0).flip(0)], 1)
    targets = Outputs("regression", ("x", "y"), (0.0, 0.0), (1.0, 1.0))
    kinds, names = as_kinds(targets, values)
    assert names == ("x up to 19.5, y above 19.5", "x above 19.5, y up to 19.5")
    assert kinds.tolist() == [0] * 20 + [1] * 20
