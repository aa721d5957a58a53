"""The driver: what it hands out, decides and remembers, without any executor."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from studies.errors import (
    DamagedError,
    ExistsError,
    LockedError,
    ScoresError,
    StudyError,
    TooManyFailuresError,
)
from studies.journal.directory import read_study
from studies.journal.lock import holder
from studies.journal.reader import JOURNAL, read_journal, read_trials
from studies.search.driver import SearchDriver
from studies.search.warm_start import read_architectures
from studies.workers.executors import RunEnding, run_in_process
from support import trivial


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study"


def create(path, enqueue=(), warm_start=None, **overrides):
    return SearchDriver.create(
        path, trivial.study(**overrides), enqueue=enqueue, warm_start=warm_start
    )


def complete(driver, **scores):
    """Hands out a trial and reports the same scores at all its rungs; returns its number."""
    assignment = driver.next()
    for epoch in driver.study.rungs:
        driver.report(
            assignment.number,
            epoch,
            {"epoch": epoch, "accuracy": 0.5, "symmetry_accuracy": 0.5, **scores},
        )
    driver.finish(assignment.number, "complete")
    return assignment.number


def test_a_directory_that_holds_a_study_is_refused(path):
    create(path).close()
    with pytest.raises(
        ExistsError, match="already holds a study; go on with `equisearch resume"
    ) as caught:
        create(path)
    assert caught.value.exit_status == 3


def test_a_file_in_place_of_the_directory_is_refused(path):
    path.write_text("x")
    with pytest.raises(ExistsError, match="is a file"):
        create(path)


def test_opening_nothing_says_how_to_begin(path):
    with pytest.raises(StudyError, match="holds no study.*equisearch start"):
        SearchDriver.open(path)


def test_a_second_driver_is_refused_with_the_holders_pid(path):
    import os

    with create(path):
        assert f"pid {os.getpid()}" in holder(path)
        code = f"from studies.search.driver import SearchDriver; SearchDriver.open({str(path)!r})"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "LockedError" in result.stderr and f"pid {os.getpid()}" in result.stderr
    assert LockedError.exit_status == 3 and holder(path) is None


def test_a_lock_file_of_a_dead_process_is_no_obstacle(path):
    create(path).close()
    (path / "lock").write_text("pid 999999 on elsewhere\n")
    SearchDriver.open(path).close()


def test_everything_a_trial_is_stands_in_the_journal_and_its_folder(path):
    with create(path) as driver:
        number = complete(driver, loss=0.25)
    record = read_trials(path, parameters=True)[number]
    assert (
        record.state == "complete" and record.values == (0.5, 0.5) and record.scores["loss"] == 0.25
    )
    assert {
        "family",
        "group",
        "params",
        "macs",
        "exact",
        "surviving",
        "seed",
        "architecture",
    } <= set(record.attributes)
    assert record.parameters["layout"] in ("max2/2", "max3/2", "avg3/2p1") and isinstance(
        record.parameters.get("input_size", 25), int
    )
    assert (
        path / "trials" / "00000" / "architecture.txt"
    ).read_text().strip() == record.architecture


def test_optuna_reads_the_journal_as_we_do(path):
    with create(path, search__sampler="tpe") as driver:
        run_in_process(driver, trivial.trainable)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(path / "optuna.journal"))
    )
    theirs = optuna.load_study(study_name="equisearch", storage=storage).trials
    ours = read_trials(path, parameters=True)
    assert len(theirs) == len(ours) == 12
    for a, b in zip(theirs, ours):
        assert (a.number, a.state.name.lower(), a.params, a.user_attrs) == (
            b.number,
            b.state.replace("failed", "fail"),
            b.parameters,
            b.attributes,
        )
        assert (a.values and tuple(a.values)) == b.values


def test_pruned_trials_have_no_values(path):
    with create(path) as driver:
        run_in_process(driver, trivial.trainable)
    assert all((r.values is None) == (r.state != "complete") for r in read_trials(path))


def test_the_same_seed_proposes_the_same(path, tmp_path):
    for place in ("a", "b"):
        with create(tmp_path / place, search__sampler="tpe", search__startup=4) as driver:
            run_in_process(driver, trivial.trainable)
    assert trivial.ended(tmp_path / "a") == trivial.ended(tmp_path / "b")
    with create(tmp_path / "c", search__sampler="tpe", search__startup=4, search__seed=1) as driver:
        run_in_process(driver, trivial.trainable)
    assert trivial.ended(tmp_path / "a") != trivial.ended(tmp_path / "c")


def test_a_rung_asked_again_answers_the_same(path):
    with create(path) as driver:
        for _ in range(4):
            complete(driver, accuracy=0.9, symmetry_accuracy=0.9)
        late = driver.next().number
        scores = {"epoch": 1, "accuracy": 0.1, "symmetry_accuracy": 0.1}
        assert driver.report(late, 1, scores) == "stop"
        assert driver.report(late, 1, {**scores, "accuracy": 1.0}) == "stop"
        assert driver.report(late, 2, scores) == "continue"  # no rung
        assert driver.report(99, 1, scores) == "stop"  # nobody's


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"accuracy": float("nan")}, "accuracy is nan at epoch 1"),
        ({"accuracy": None}, "need accuracy; got None"),
        ({"symmetry_accuracy": float("inf")}, "symmetry_accuracy is inf"),
        ({"loss": float("nan")}, "loss is nan"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(path, wrong, message):
    with create(path) as driver:
        number = driver.next().number
        with pytest.raises(ScoresError, match=message):
            driver.report(
                number, 1, {"epoch": 1, "accuracy": 0.5, "symmetry_accuracy": 0.5, **wrong}
            )


def test_an_objective_that_was_not_measured_fails_the_trial(path):
    with create(path, objectives=["accuracy", "latency"]) as driver:
        number = complete(driver)
    assert read_trials(path)[number].reason == "the scores lack the objective latency"


def test_costs_are_objectives_without_being_measured(path):
    with create(path, objectives=["accuracy", "params", "macs"]) as driver:
        number = complete(driver)
    record = read_trials(path)[number]
    assert record.values == (0.5, record.attributes["params"], record.attributes["macs"])


def test_what_cannot_fit_is_refused_before_it_trains(path):
    with create(path, constraints__params=15_000, search__trials=8) as driver:
        run_in_process(driver, trivial.trainable)
    records = read_trials(path)
    refused = [r for r in records if r.state == "refused"]
    assert refused and all(
        "params exceed the limit of 15,000" in r.reason and not r.feasible for r in refused
    )
    assert all(r.attributes["params"] <= 15_000 for r in records if r.state != "refused")
    assert sum(r.state != "refused" for r in records) == 8
    assert not any((path / "trials" / f"{r.number:05d}").exists() for r in refused)


def test_a_study_in_which_nothing_fits_says_why(path):
    with create(path, constraints__params=10) as driver:
        with pytest.raises(
            StudyError,
            match="no architecture of the space can be trained.*params exceed the limit of 10",
        ):
            driver.next()


def test_what_breaks_a_limit_when_measured_never_reaches_the_front(path):
    with create(path, constraints__latency=5.0, constraints__params=10**9) as driver:
        number = complete(driver, latency=9.0, accuracy=1.0, symmetry_accuracy=1.0)
        assert driver.volume == 0
        complete(driver, latency=3.0)
        assert driver.volume == pytest.approx(0.25)
    assert not read_trials(path)[number].feasible


SMALL = {
    "space__input_size": 28,
    "space__layout": ["max2/2"],
    "space__group": ["C4"],
    "space__equivariance_loss": {"kind": "none"},
}


def test_a_repeat_gets_another_seed_and_then_is_not_run(path):
    with create(path, **SMALL, search__repeats=2, search__trials=50) as driver:
        assert run_in_process(driver, trivial.trainable) == RunEnding("exhausted")
    trained = [r for r in read_trials(path) if r.state != "refused"]
    assert sorted((r.attributes["family"], r.attributes["seed"]) for r in trained) == [
        ("plain", 0),
        ("plain", 1),
        ("steerable", 0),
        ("steerable", 1),
    ]
    assert any(
        "trained 2 times already" in r.reason for r in read_trials(path) if r.state == "refused"
    )


def test_a_space_of_one_architecture_ends_with_one_sentence(path):
    with create(path, **SMALL, space__family="steerable", search__repeats=2) as driver:
        assert run_in_process(driver, trivial.trainable) == RunEnding("exhausted")
        assert "every architecture of the space was trained 2 times" in driver.explanation
    assert [r.state == "refused" for r in read_trials(path)] == [False, False, True]


def test_fewer_trials_than_have_ended_are_refused(path):
    with create(path, search__trials=3) as driver:
        run_in_process(driver, trivial.trainable)
    with pytest.raises(StudyError, match="search.trials is 1, but in .* 3 trials ended"):
        SearchDriver.open(path, trivial.study(search__trials=1))
    with SearchDriver.open(path) as driver:
        assert driver.study.search.trials == 3


def test_the_grid_tries_every_choice_once(path):
    overrides = {**SMALL, "space__layout": ["max2/2", "max3/2", "avg3/2p1"]}
    with create(
        path, **overrides, search__sampler="grid", search__repeats=1, search__trials=50
    ) as driver:
        assert run_in_process(driver, trivial.trainable) == RunEnding("exhausted")
    assert len({r.architecture for r in read_trials(path)}) == len(read_trials(path)) == 6


def test_stops_when_the_front_has_not_moved(path):
    with create(path, search__patience=3, search__trials=50) as driver:
        complete(driver, accuracy=1.0, symmetry_accuracy=1.0)
        for _ in range(3):
            assert driver.next() is not None or driver.ended
            if driver.ended:
                break
            driver.finish(driver.running[0], "pruned")
        assert driver.next() is None and driver.ended == "patience"
    with SearchDriver.open(path) as driver:  # the same from what is in the journal
        assert driver.next() is None and driver.ended == "patience"


def test_the_volume_of_an_opened_study_is_the_same(path):
    with create(path) as driver:
        run_in_process(driver, trivial.trainable)
        volume = driver.volume
    with SearchDriver.open(path) as driver:
        assert driver.volume == pytest.approx(volume, abs=1e-12) and driver.finished == 12


def test_known_architectures_come_first(path, tmp_path):
    (tmp_path / "known.txt").write_text(
        "# the paper's\n28px: 10k3@C4, 10k3 max2/2, 10k3\n\n29px: 8k3@C2, 8k3 max3/2\n"
    )
    known = read_architectures(tmp_path / "known.txt")
    with create(path, enqueue=known) as driver:
        assert [driver.next().architecture for _ in range(2)] == known
        assert driver.next().architecture not in known
    (tmp_path / "known.txt").write_text("28px: 10k3\n28px: nonsense\n")
    with pytest.raises(StudyError, match="known.txt, line 2"):
        read_architectures(tmp_path / "known.txt")


def test_an_earlier_study_teaches_the_sampler_but_stays_off_the_front(path, tmp_path):
    with create(tmp_path / "earlier", search__trials=20) as driver:
        run_in_process(driver, trivial.trainable)
    done = sum(r.state == "complete" for r in read_trials(tmp_path / "earlier"))
    with create(
        path, warm_start=tmp_path / "earlier", search__sampler="tpe", search__startup=2
    ) as driver:
        assert driver.volume == 0 and driver.finished == 0
        run_in_process(driver, trivial.trainable)
        assert driver.finished == 12
    records = read_trials(path)
    assert [r.state for r in records[:done]] == ["earlier"] * done and len(records) == done + 12
    with pytest.raises(StudyError, match="cannot warm this study up: its space.group"):
        create(tmp_path / "other", warm_start=tmp_path / "earlier", space__group=["C2"])
    with pytest.raises(StudyError, match="holds no study"):
        create(tmp_path / "other", warm_start=tmp_path / "nowhere")
    (tmp_path / "earlier" / JOURNAL).write_bytes(b"[1,2]\n{}\n")
    with pytest.raises(DamagedError, match="equisearch repair"):
        create(tmp_path / "other", warm_start=tmp_path / "earlier")
    (tmp_path / "earlier" / JOURNAL).unlink()
    with pytest.raises(StudyError, match="has no optuna.journal"):
        create(tmp_path / "other", warm_start=tmp_path / "earlier")
    assert not (tmp_path / "other").exists()


def test_a_changed_study_is_refused_with_the_difference_named(path):
    create(path).close()
    with pytest.raises(StudyError, match=r"changed since .* \(training.epochs: 9 -> 4\)"):
        SearchDriver.open(path, trivial.study(training__epochs=4))
    wider = trivial.study(search__trials=99, search__timeout=60, resources__cpus_per_trial=2)
    with SearchDriver.open(path, wider) as driver:
        assert driver.study.search.trials == 99
    with SearchDriver.open(path) as driver:
        assert driver.study == wider


def test_a_changed_version_is_a_warning(path):
    create(path).close()
    with SearchDriver.open(path) as driver:
        assert driver.warnings == ()
    versions = json.loads((path / "versions.json").read_text())
    (path / "versions.json").write_text(json.dumps({**versions, "code": "another"}))
    with SearchDriver.open(path) as driver:
        assert "code another -> " in driver.warnings[0]


def test_channels_and_classes_are_remembered(path):
    SearchDriver.create(path, trivial.study(), channels=3, classes=7).close()
    with SearchDriver.open(path) as driver:
        assert (driver.channels, driver.classes) == (3, 7)
    assert read_journal(path)[0]["classes"] == 7


def test_the_fifth_failure_in_a_row_ends_the_study(path):
    with create(path, search__trials=20) as driver:
        for failed in [True] * 4 + [False] + [True] * 4:
            number = driver.next().number
            driver.finish(number, "failed" if failed else "pruned", "it broke")
        number = driver.next().number
        with pytest.raises(TooManyFailuresError, match="5 trials in a row failed.*it broke"):
            driver.finish(number, "failed", "it broke")
    assert read_trials(path)[number].state == "failed"


def test_given_out_trials_are_bounded_by_the_number_of_trials(path):
    with create(path, search__trials=2) as driver:
        first, second = driver.next(), driver.next()
        assert driver.next() is None and driver.ended is None
        driver.finish(first.number, "interrupted")
        again = driver.next()
        assert again == first and Path(again.directory).name == "00000"
        assert second.number == 1


def test_a_file_system_that_cannot_lock_is_named(path, monkeypatch):
    SearchDriver.create(path, trivial.study()).close()

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("studies.journal.lock.fcntl.flock", refuse)
    with pytest.raises(StudyError, match="cannot lock files.*local disk") as caught:
        SearchDriver.open(path)
    assert not isinstance(caught.value, LockedError)


@pytest.mark.parametrize("fault", ["renamed", "deleted", "lock deleted", "lock replaced"])
def test_a_directory_that_goes_while_it_is_driven_gives_out_no_work(path, fault):
    with SearchDriver.create(path, trivial.study()) as driver:
        driver.finish(driver.next().number, "interrupted")
        if fault == "renamed":
            path.rename(path.with_name("elsewhere"))
        elif fault == "deleted":
            shutil.rmtree(path)
        else:
            (path / "lock").unlink()
            if fault == "lock replaced":
                (path / "lock").write_text("")
        with pytest.raises(StudyError, match="moved or deleted while this process drove"):
            driver.next()
    assert path.exists() == fault.startswith("lock")


@pytest.mark.parametrize(
    ("key", "value"), [("search.trials", 99), ("search.retries", 9), ("search.timeout", "1h")]
)
def test_what_may_be_widened(path, key, value):
    SearchDriver.create(path, trivial.study()).close()
    SearchDriver.open(path, trivial.study(**{key.replace(".", "__"): value})).close()
    assert trivial.study() != read_study(path)


def test_a_changed_library_is_named(path):
    SearchDriver.create(path, trivial.study()).close()
    versions = json.loads((path / "versions.json").read_text())
    for name in ("torch", "optuna", "python", "code"):
        (path / "versions.json").write_text(json.dumps({**versions, name: "0.1"}))
        with SearchDriver.open(path) as driver:
            assert f"{name} 0.1 -> {versions[name]}" in driver.warnings[0]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_directory_that_cannot_be_written_is_named_with_what_to_do(path, monkeypatch, number):
    SearchDriver.create(path, trivial.study()).close()

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("studies.journal.lock._open", refuse)
        with pytest.raises(StudyError, match="use an account that may write"):
            SearchDriver.open(path)
    with monkeypatch.context() as patch:
        patch.setattr("studies.journal.writer.drop_torn_line", refuse)
        with pytest.raises(StudyError, match="use an account that may write"):
            SearchDriver.open(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(StudyError, match="cannot be created.*choose a place"):
            SearchDriver.create(path / "new", trivial.study())


def test_what_no_rung_stops_trains_to_the_last_epoch(tmp_path):
    with SearchDriver.create(tmp_path / "study", trivial.study()) as driver:
        assert driver.study.rungs == (1, 3, 9)
        run_in_process(driver, trivial.trainable)
    complete = [r for r in read_trials(tmp_path / "study") if r.state == "complete"]
    assert complete and all(list(r.rungs) == [1, 3, 9] for r in complete if r.continues is None)
