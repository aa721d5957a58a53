"""What is tested is what ships: retraining on all but the test images, search score against test
score, and bundles of retrained networks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from studies import start
from studies.config import parse
from studies.errors import InterruptedStudyError, StudyError
from studies.results import export_trial as export_module
from studies.results import retrain
from studies.results.export_trial import export_trial, verify_bundle
from studies.results.retrain import MeanStd
from studies.results.retrain_job import RESULT
from studies.results.selection import (
    change_from_search,
    mean_over_seeds,
    over_images,
    selection_lines,
    selection_table,
    with_selection,
)
from trainers.bundles import export as exporting
from trainers.bundles.formats import REQUIRED, FormatError
from trainers.bundles.verify import load_checked
from trainers.data.datasets import load_data

STUDY = """
data: {name: digits, train: 60, validation: 40, test: 50}
training: {epochs: 2, batch_size: 10, device: cpu}
symmetry: {group: C4, angles: 90}
space: {backbone: "4k3 *, 4k3", family: steerable, group: C4, input_size: 8, layout: max2/2,
  head: group_max}
search: {trials: 1, rungs: [], sampler: random}
resources: {workers: 1}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A study with one complete trial."""
    folder = tmp_path_factory.mktemp("study") / "run"
    start(parse(STUDY), folder)
    return folder


@pytest.fixture(scope="module")
def retrained(directory):
    """The rows of two seeds on training and validation images."""
    return run(directory, seeds=2)


def run(directory, on_result=lambda done, result: None, **options):
    study = retrain.retraining_study(directory)
    jobs = retrain.front_jobs(study, directory, **options)
    return with_selection(
        directory, retrain.summarise_seeds(retrain.run_jobs(jobs, study, directory, on_result))
    )


def folder_of(directory, what):
    return retrain.folder_of(directory, 0) / f"epochs2-{what}"


def test_merged_images_are_those_of_both_splits():
    data = parse(STUDY).data
    apart, merged = load_data(data, (8, 8)), load_data(data, (8, 8), merge=True)
    assert len(merged.train) == 100 and len(merged.validation) == 0
    assert torch.equal(
        merged.train.pixels, torch.cat([apart.train.pixels, apart.validation.pixels])
    )
    assert (merged.mean, merged.std) == (apart.mean, apart.std)


def test_a_retraining_learns_from_validation_images_too_unless_they_are_kept(directory, retrained):
    (row,) = retrained
    assert (row["n"], row["num_test"], row["trained_on"]) == (2, 50, "train+validation")
    result = json.loads((folder_of(directory, "merged-seed1") / RESULT).read_text())
    assert "validation" not in result and result["fitted"]["images"] == 40
    (kept,) = run(directory, seeds=1, keep_validation=True)
    alone = json.loads((folder_of(directory, "seed1") / RESULT).read_text())
    assert kept["trained_on"] == "train" and alone["validation"]["epoch"] == 2
    assert alone["test"]["loss"] != result["test"]["loss"]


def test_the_mean_of_the_seeds_is_tested_too(directory, retrained):
    mean = json.loads((folder_of(directory, "merged-mean2") / RESULT).read_text())
    assert mean["members"] == 2 and mean["seed"] is None
    assert retrained[0]["mean_of_seeds"]["accuracy"] == mean["test"]["accuracy"]
    assert mean["test"]["params"] == 2 * retrained[0]["params"]


def test_search_scores_stand_beside_test_scores(retrained):
    found = retrained[0]["selection"]["accuracy"]
    assert found["search"]["low"] < found["search"]["value"] < found["search"]["high"]
    assert found["test"]["value"] == pytest.approx(retrained[0]["accuracy"].mean)
    gap = found["test"]["value"] - found["search"]["value"]
    assert found["difference"]["value"] == pytest.approx(gap)
    columns, cells = selection_table(retrained)
    assert len(cells) == 2 and len(cells[0]) == len(columns)
    assert any("points" in line for line in selection_lines(retrained))


def test_intervals_hold_images_and_seeds():
    images = over_images(0.9, 100)
    assert (images.low, images.high) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    alone, three = (
        mean_over_seeds(MeanStd(0.9, 0.0, 1), 100),
        mean_over_seeds(MeanStd(0.9, 0.02, 3), 100),
    )
    assert alone == images
    # Student's t of two degrees of freedom: 4.302653 standard errors of 0.02 / sqrt(3)
    assert three.high - 0.9 == pytest.approx(
        ((images.high - 0.9) ** 2 + (4.302653 * 0.02) ** 2 / 3) ** 0.5
    )
    # Newcombe's interval for two proportions, 0.9 of 100 less 0.95 of 80
    gap = change_from_search(0.95, 80, MeanStd(0.9, 0.0, 1), 100)
    assert (gap.value, gap.low, gap.high) == pytest.approx((-0.05, -0.1303, 0.0345), abs=5e-4)


def killed_at(directory, epoch):
    """Retrains one seed, and dies once an epoch is saved."""
    from studies.workers import worker  # noqa: F401  (imported before the images are read)
    from trainers.training import checkpoint

    saved, honest = [], checkpoint.save_checkpoint

    def save(*arguments):
        honest(*arguments)
        saved.append(1)
        if len(saved) == epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_checkpoint = save
    run(Path(directory), seeds=1)


def test_a_retraining_that_is_killed_continues_from_its_checkpoint(directory, retrained):
    """The result is that of one that was not."""
    folder = folder_of(directory, "merged-seed1")
    expected = json.loads((folder / RESULT).read_text())
    moved = folder.rename(folder.with_name("undisturbed"))
    try:
        process = multiprocessing.get_context("spawn").Process(
            target=killed_at, args=(str(directory), 1)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL and not (folder / RESULT).exists()
        before = (folder / "checkpoint.pt").stat().st_mtime_ns
        run(directory, seeds=1)
        again = json.loads((folder / RESULT).read_text())
        assert (folder / "checkpoint.pt").stat().st_mtime_ns > before
        assert (folder / "checkpoint.previous.pt").exists()
        for result in (expected, again):
            for name in ("seconds", "latency"):
                del result["test"][name]
        assert again == expected
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        moved.rename(folder)


def test_a_signal_keeps_what_is_finished(directory, retrained):
    def interrupt(done, result):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    run(directory, seeds=1, keep_validation=True)
    with pytest.raises(InterruptedStudyError, match="2 of 3 are finished and kept; the same comm"):
        run(directory, interrupt, seeds=2, keep_validation=True)
    assert (folder_of(directory, "seed2") / RESULT).exists()
    assert not (folder_of(directory, "mean2") / RESULT).exists()


def test_a_bundle_of_one_retrained_seed_carries_the_test_scores(
    directory, retrained, tmp_path, monkeypatch
):
    only_weights(monkeypatch)
    bundle = export_trial(directory, 0, tmp_path / "bundle", retrained="2")
    manifest = json.loads((bundle / "bundle.json").read_text())
    (row,) = retrained
    assert manifest["test"]["scores"]["accuracy"]["mean"] == row["accuracy"].mean
    assert manifest["test"]["scores"]["accuracy"]["n"] == 2 and manifest["scores_on"] == "test"
    card = (bundle / "README.md").read_text()
    assert f"{100 * row['accuracy'].mean:.2f} ± {100 * row['accuracy'].std:.2f} %" in card
    assert "100 training and validation images" in card and "On 50 test images" in card
    assert verify_bundle(bundle).good


def only_weights(monkeypatch):
    """Exports without the formats that take seconds to write."""
    honest = exporting.write_format

    def writer(model, content, folder, name):
        if name not in REQUIRED:
            raise FormatError("not tried")
        honest(model, content, folder, name)

    monkeypatch.setattr(exporting, "write_format", writer)


def test_a_trial_that_a_rung_stopped_is_exported_once_it_is_retrained(
    directory, retrained, tmp_path, monkeypatch
):
    only_weights(monkeypatch)
    find = export_module.find_trial
    monkeypatch.setattr(export_module, "find_trial", lambda *of: replace(find(*of), state="pruned"))
    bundle = export_trial(directory, 0, tmp_path / "bundle", retrained="1")
    assert verify_bundle(bundle).good
    with pytest.raises(StudyError, match="trial 0 is stopped; only complete trials"):
        export_trial(directory, 0, tmp_path / "other")


def test_the_mean_of_seeds_is_one_network(directory, retrained, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        only_weights(patch)
        single = [
            load_checked(export_trial(directory, 0, tmp_path / seed, retrained=seed))[1]
            for seed in "12"
        ]
    bundle = export_trial(directory, 0, tmp_path / "mean", retrained="mean-of-2")
    manifest, model = load_checked(bundle)
    images = torch.rand(5, 1, 8, 8)
    shares = torch.stack([one(images).softmax(1) for one in single]).mean(0)
    assert torch.allclose(model(images).softmax(1), shares, atol=1e-6)
    assert set(manifest.formats) == {"torch", "safetensors", "torch.export", "onnx"}
    assert verify_bundle(bundle, run_code=True).good


@pytest.mark.parametrize(
    "which, said",
    [
        ("best", "retrained on its validation images too, so nothing but the test"),
        ("7", "seeds 1, 2, which 7 is not among; `equisearch retrain"),
        ("mean-of-5", "which mean-of-5 is not among"),
        ("all", "names no retrained network; give a seed, best, or mean-of-N"),
    ],
)
def test_what_was_not_retrained_is_not_exported(directory, retrained, tmp_path, which, said):
    copy = shutil.copytree(directory, tmp_path / "copy")
    for kept in copy.glob("retrained/*/epochs2-seed*"):
        shutil.rmtree(kept)
    with pytest.raises(StudyError, match=said):
        export_trial(copy, 0, retrained=which)


def test_the_best_seed_is_chosen_by_validation_images(directory, retrained, tmp_path, monkeypatch):
    only_weights(monkeypatch)
    run(directory, seeds=2, keep_validation=True)
    results = [
        json.loads((folder_of(directory, f"seed{seed}") / RESULT).read_text()) for seed in (1, 2)
    ]
    best = max(
        results, key=lambda r: r["validation"]["accuracy"] * r["validation"]["symmetry_accuracy"]
    )
    bundle = export_trial(directory, 0, tmp_path / "bundle", retrained="best")
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["origin"]["seed"] == best["seed"]
    assert manifest["scores"].items() <= best["test"].items()
    assert "the best of 2 by validation images" in (bundle / "README.md").read_text()
