"""Retraining: n seeds with spread, the test split, results that are kept; and the published
experiment's table.
"""

import json
import re
from contextlib import closing
from dataclasses import astuple

import pytest

from searchspace.architecture import Architecture
from searchspace.recipe import Candidate
from studies.config import dump, parse
from studies.errors import LockedError, StudyError
from studies.journal.lock import StudyLock
from studies.results import reproduce, retrain_job
from studies.results.retrain import MeanStd, _resourced, row_as_dict, run_jobs, summarise_seeds
from studies.results.retrain_job import RESULT, Job
from studies.results.train_one import train_lines, train_one

STUDY = """
data: {name: digits, train: 200, validation: 80, test: 90}
training: {epochs: 2, batch_size: 64}
symmetry: {group: C4, angles: 90}
"""


def study(**overrides):
    return parse(STUDY, overrides={"resources.workers": 1, **overrides})


def jobs(folder, seeds=(1, 2), merge=False):
    return [
        Job(name, text, seed, None, str(folder / name / str(seed)), merge)
        for seed in seeds
        for name, text in (
            ("exact", "12px: 4k3@C4, 4k3 max2/2, 4k3"),
            ("plain", "12px: 8k3, 8k3 max2/2, 8k3"),
        )
    ]


def test_results_carry_n_and_spread_and_come_from_the_test_split(tmp_path):
    told = []
    rows = {
        row["name"]: row
        for row in summarise_seeds(
            run_jobs(jobs(tmp_path), study(), tmp_path, lambda done, result: told.append(done))
        )
    }
    assert told == [1, 2, 3, 4] and rows["exact"]["n"] == 2 and rows["exact"]["num_test"] == 90
    exact, plain = rows["exact"], rows["plain"]
    assert [exact[f"turn_{turn}"].mean for turn in (0, 90, 180, 270)] == [
        exact["accuracy"].mean
    ] * 4
    assert plain["quarter_turn_mean"].mean == pytest.approx(
        sum(plain[f"turn_{turn}"].mean for turn in (0, 90, 180, 270)) / 4
    )
    assert set(exact["by_angle"]) == {"0", "90", "180", "270"}


def test_what_is_done_is_not_done_again(tmp_path):
    first = run_jobs(jobs(tmp_path, seeds=(1,)), study(), tmp_path)
    path = tmp_path / "exact" / "1" / RESULT
    changed = {**json.loads(path.read_text()), "num_test": 12345}
    path.write_text(json.dumps(changed))
    again = run_jobs(jobs(tmp_path, seeds=(1,)), study(), tmp_path)
    assert again[0]["num_test"] == 12345 and again[1] == first[1]


def test_ray_workers_give_the_same_results(tmp_path, connected):
    alone = run_jobs(jobs(tmp_path / "a", seeds=(1,)), study(), tmp_path)
    (tmp_path / "study.yaml").write_text(dump(study()))
    both = study(**{"resources.workers": 2, "resources.executor": "ray"})
    together = run_jobs(jobs(tmp_path / "b", seeds=(1,)), both, tmp_path)
    assert [r["quarter_turns"] for r in alone] == [r["quarter_turns"] for r in together]


def test_spread_is_the_sample_standard_deviation():
    assert MeanStd.of([0.9, 1.0]) == MeanStd(
        pytest.approx(0.95), pytest.approx(0.0707107, rel=1e-5), 2
    )
    assert MeanStd.of([0.5]) == MeanStd(0.5, 0.0, 1)
    assert MeanStd.of([0.5]).percent() == "50.00"
    assert MeanStd.of([0.25, 0.75]).percent() == "50.00 ± 35.36"


def result(seed=1, **changes):
    """What a training leaves behind, made up."""
    test = {"accuracy": 0.7, "symmetry_accuracy": 0.6, "symmetry_accuracy_worst": 0.2}
    return {
        "name": "trial 3",
        "architecture": "12px: 4k3@C4",
        "seed": seed,
        "epochs": 9,
        "num_test": 77,
        "test": {**test, "equivariance_error": 0.1, "params": 1, "macs": 2},
        "quarter_turns": {"0": 0.9, "90": 0.5, "180": 0.4, "270": 0.2},
        "accuracy_by_angle": {"0": 0.9, "45": 0.3, "90": 0.6},
        **changes,
    }


def test_the_summary_of_angles_and_elements():
    other = result(2, accuracy_by_angle={"0": 0.8, "45": 0.7, "90": 0.1})
    (row,) = summarise_seeds([result(), other])
    # the worst angle of each seed, whichever it is
    assert row["angle_worst"] == MeanStd.of([0.3, 0.1])
    assert row["angle_mean"].mean == pytest.approx((0.6 + 1.6 / 3) / 2)
    assert row["quarter_turn_mean"] == MeanStd(pytest.approx(0.5), 0.0, 2)
    assert [row[f"turn_{turn}"].mean for turn in (0, 90, 180, 270)] == [0.9, 0.5, 0.4, 0.2]
    assert row["by_angle"]["45"] == MeanStd.of([0.3, 0.7])
    assert (row["accuracy"].mean, row["symmetry_accuracy"].mean) == (0.7, 0.6)
    assert (row["symmetry_accuracy_worst"].mean, row["equivariance_error"].mean) == (0.2, 0.1)
    assert (row["n"], row["epochs"], row["num_test"]) == (2, 9, 77)
    assert row_as_dict(row)["accuracy"] == {"mean": 0.7, "std": 0.0, "n": 2}


@pytest.mark.parametrize("text", ["{}", "[]", "null", "", '{"name": 1}', "[" * 100_000])
def test_a_result_that_is_none_ends_in_one_message(tmp_path, text):
    (job, _) = jobs(tmp_path, seeds=(1,))
    path = tmp_path / "exact" / "1" / RESULT
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(
        StudyError, match=r"result\.json holds no result of a training .* delete it"
    ):
        run_jobs([job], study(), tmp_path)


def test_two_trainings_at_once_in_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(retrain_job, "WORKER_PATIENCE", 0.0)
    (job, _) = jobs(tmp_path, seeds=(1,))
    folder = tmp_path / "exact" / "1"
    folder.mkdir(parents=True)
    candidate = Candidate.parse(job.architecture)
    with closing(StudyLock(folder)):
        for train in (
            lambda: run_jobs([job], study(), tmp_path),
            lambda: train_one(study(), candidate, out=folder),
        ):
            with pytest.raises(LockedError, match=r"written by another process \(pid \d+ on"):
                train()
    assert not list(folder.glob("*.pt"))


def test_a_single_training_notes_its_images_and_a_batch_larger_than_the_training_set():
    settings = {
        "training.device": "cpu",
        "training.epochs": 1,
        "training.batch_size": 64,
        "data.train": 60,
        "data.validation": 20,
    }
    study, notes = parse("data: {name: digits}", overrides=settings), []
    train_one(study, Candidate.parse("12px: 2k3"), note=notes.append)
    assert "60 training and 20 validation images" in notes[0] and "classes" in notes[1]
    assert "batch_size is 64, and there are 60 training images" in notes[2] and len(notes) == 3


def test_data_without_a_test_split_is_refused(tmp_path):
    import numpy
    from PIL import Image

    for split in ("train", "validation"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = numpy.random.default_rng(number).integers(
                    0, 255, (12, 12), dtype=numpy.uint8
                )
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.png")
    folder = parse(
        f"data: {{folder: {tmp_path / 'images'}}}\ntraining: {{epochs: 1, batch_size: 4}}\n"
    )
    with pytest.raises(StudyError, match="test split"):
        run_jobs([Job("x", "12px: 4k3", 1, None, str(tmp_path / "out"))], folder, tmp_path)


def row(name, turns, upright_only=False):
    accuracies = [MeanStd(value, 0.0, 3) for value in turns]
    mean = MeanStd(sum(turns) / 4, 0.0, 3)
    return {
        "name": name,
        "n": 3,
        **{f"turn_{turn}": value for turn, value in zip((0, 90, 180, 270), accuracies)},
        "quarter_turn_mean": mean,
        "angle_mean": mean,
        "angle_worst": mean,
    }


def test_claims_of_the_paper_can_fail():
    published = [
        row("P4 28 px", (0.9769,) * 4),
        row("P4 27 px", (0.9852, 0.7865, 0.5023, 0.8281)),
        row("P4 29 px", (0.9842, 0.8013, 0.5111, 0.8159)),
        row("Z2 28 px", (0.9847, 0.179, 0.4474, 0.1725)),
    ]
    assert len(reproduce.claims("upright", published)) == 5 and all(
        claim.holds for claim in reproduce.claims("upright", published)
    )
    measured = [claim.measured for claim in reproduce.claims("upright", published)]
    # the means over quarter turns of the published accuracies, 97.69, 77.55 and 77.81
    assert measured[1:] == [
        f"{points} ± 0.00 points, n = 3" for points in ("+0.83", "+20.14", "+0.73", "+19.88")
    ]
    broken = [
        row("P4 28 px", (0.97, 0.96, 0.97, 0.97)),
        row("P4 27 px", (0.96,) * 4),
        row("P4 29 px", (0.5,) * 4),
        published[3],
    ]
    assert not any(claim.holds for claim in reproduce.claims("upright", broken))
    assert reproduce.claims("upright", published[:2]) == reproduce.claims("upright", published)[:3]
    assert reproduce.claims("upright", published[1:]) == []  # all compare with the exact one
    assert reproduce.claims("uniform", published) == []


def test_a_claim_is_settled_by_more_than_one_training_and_by_its_interval():
    def worse(*values):
        exact, other = (MeanStd.of([share - low for low in values]) for share in (1.0, 0.8))
        return reproduce.MeanDifference.of(exact, other).claim("worse", 15, 25)

    assert str(worse(0.0)) == "  not settled  worse: +20.00 points, n = 1"
    assert worse(0.0).holds and not worse(0.0).settled
    few, many = worse(0.0, 0.1), worse(*[0.0, 0.01] * 5)
    assert few.holds and not few.settled and "n = 2" in few.measured
    assert many.holds and many.settled
    # as scipy's Welch with the smaller row's degrees of freedom: 2.262 * 0.00527 * sqrt(2 / 10)
    assert many.measured == "+20.00 ± 0.53 points, n = 10"


def test_the_table_puts_published_figures_beside():
    columns, cells = reproduce.beside_published("upright", [row("P4 28 px", (0.9769,) * 4)])
    assert (
        len(cells) == 2
        and cells[1][0].strip() == "published"
        and "97.69" in cells[1][2]
        and len(columns) == len(cells[0]) == len(cells[1])
    )


@pytest.mark.parametrize("shift", reproduce.SHIFTS)
def test_studies_of_the_reproduction_are_those_of_the_paper(shift, mnist_root):
    study = reproduce.study_of(shift, root=str(mnist_root), epochs=50, test=None)
    training = study.training
    assert (
        training.batch_size,
        training.learning_rate,
        training.weight_decay,
        training.schedule,
        training.epochs,
    ) == (256, 0.01, 1e-5, "step", 50)
    assert (study.data.name, study.data.train, study.data.validation) == ("mnist_t10k", 8000, 2000)
    with pytest.raises(StudyError, match="upright"):
        reproduce.study_of("sideways", root=".", epochs=1, test=None)


def test_dropout_stands_where_the_paper_has_it_and_in_folders_of_its_own(tmp_path):
    study = reproduce.study_of("upright", root=".", epochs=1, test=None)
    with_it, without = (
        reproduce.jobs("upright", tmp_path, study, seeds=1, models=["P4 29 px"], dropout=rate)[0]
        for rate in (0.3, 0.0)
    )
    rates = [s.dropout.rate for s in Architecture.parse(with_it.architecture).stages]
    assert rates == [0.3, 0, 0.3, 0.3, 0.3, 0, 0]
    assert without.architecture == reproduce.PAPER_MODELS["P4 29 px"]
    assert with_it.directory == f"{without.directory}-dropout0.3"
    with pytest.raises(ValueError, match="below 1"):
        reproduce.jobs("upright", tmp_path, study, dropout=1.0)


def test_every_seed_trains_every_model_before_the_next_seed(tmp_path):
    study = reproduce.study_of("upright", root=".", epochs=1, test=None)
    jobs = reproduce.jobs("upright", tmp_path, study, seeds=3)
    assert [job.seed for job in jobs] == [n for n in (1, 2, 3) for _ in reproduce.PAPER_MODELS]
    assert [job.name for job in jobs] == [*reproduce.PAPER_MODELS] * 3


def test_the_published_figures_are_those_of_the_paper():
    """Edixhoven et al., tables of the upright training: upright, its deviation, mean of quarter
    turns, mean of 36 angles, worst angle.
    """
    assert {
        name: astuple(row)[:5] for name, row in reproduce.PUBLISHED_ROWS["upright"].items()
    } == {
        "P4 28 px": (97.69, 0.17, 97.69, 87.22, 72.7),
        "P4 27 px": (98.52, 0.26, 77.55, 66.17, 38.1),
        "P4 29 px": (98.42, 0.25, 77.81, 66.29, 38.2),
        "Z2 28 px": (98.47, 0.17, 44.59, 42.79, 15.9),
    }


@pytest.mark.slow
@pytest.mark.parametrize("other", ["P4 27 px", "P4 29 px"])
def test_the_upright_pattern_shows_in_a_short_run(tmp_path, mnist_root, other):
    workers = {"resources.workers": 1, "resources.executor": "in_process"}
    study = reproduce.study_of(
        "upright", root=str(mnist_root), epochs=4, test=2500, batch=32, resources=workers
    )
    place = reproduce.shift_folder("upright", tmp_path, study)
    jobs = reproduce.jobs("upright", tmp_path, study, seeds=1, models=["P4 28 px", other])
    rows = summarise_seeds(run_jobs(jobs, study, place))
    same, better, worse = reproduce.claims("upright", rows)
    assert same.holds and same.settled, str(same)
    assert not better.settled and not worse.settled  # of one training each
    assert better.holds, str(better)
    assert float(worse.measured.split()[0]) > 5, str(worse)


def test_accuracy_by_angle_stands_in_columns_under_its_angles():
    angles = {str(15 * n): n / 24 for n in range(25)}
    scores = dict.fromkeys(
        ("accuracy", "symmetry_accuracy", "symmetry_accuracy_worst", "equivariance_error"), 0.5
    )
    scores |= {"equivariance_error_features": 0.1, "params": 10, "macs": 20, "latency": 0.1}
    result = {"scores": scores, "accuracy_by_angle": angles, "architecture": "12px: 4k3"}
    result |= {"epochs": 1, "seconds": 2.0, "seed": 0, "num_validation": 9}
    lines = train_lines(result)
    begin = next(n for n, line in enumerate(lines) if line.endswith("by angle:")) + 1
    found = {}
    for names, values in zip(lines[begin::2], lines[begin + 1 :: 2]):
        ends = [match.end() for match in re.finditer(r"\S+", names)]
        assert [match.end() for match in re.finditer(r"\S+", values)] == ends
        found |= dict(zip(names.split(), values.split()))
    assert found == {f"{name}°": f"{100 * value:.1f}" for name, value in angles.items()}


def test_one_job_that_is_left_needs_no_second_worker():
    four = study(**{"resources.workers": 4})
    assert [_resourced(four, left).resources.workers for left in (1, 2, 9)] == [1, 4, 4]
    on_ray = study(**{"resources.workers": 4, "resources.executor": "ray"})
    assert _resourced(on_ray, 1).resources.workers == 4
