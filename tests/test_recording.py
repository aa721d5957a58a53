"""Recorded tables and searches replayed on them: enumeration, the file, going on, and costs counted
right.
"""

import errno
import gzip
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from searchspace.exactness import verdict
from searchspace.groups import Group
from studies.config import parse
from studies.errors import LockedError, StudyError
from studies.journal.lock import StudyLock
from studies.pareto import front_volume
from studies.replays import rivals
from studies.replays.record import (
    RecordedTable,
    TableEntry,
    enumerate_space,
    read_table,
    record,
    write_table,
)
from studies.replays.replay import (
    OBJECTIVES,
    Method,
    Replayed,
    _driver_steps,
    _needed,
    full_volume,
    methods,
    replay,
)
from studies.replays.rivals import RIVALS
from studies.replays.steps import Paid, SearchStep, known
from studies.replays.trainings import ROWS
from studies.search.assignments import LeaveError
from trainers.training.train import train

TEXT = """
data: {name: digits, train: 120, validation: 60}
training: {epochs: 3, batch_size: 64}
symmetry: {group: C4}
space: {backbone: "3k3 *, 3k3", group: [C1, C4], input_size: [8, 9],
        layout: [max2/2, max3/2p1], equivariance_loss: {kind: [none, label], weight: 1.0}}
"""


def made_up(text=TEXT):
    """A table whose scores grow with the epochs and depend on the architecture alone."""
    study = parse(text)
    entries = []
    for proposal in enumerate_space(study, 1, 10):
        digest = hashlib.sha256(str(proposal).encode()).digest()
        final = (0.5 + digest[0] / 520, 0.5 + digest[1] / 520)
        entries.append(
            TableEntry(
                str(proposal.with_learning_rate(None)),
                proposal.recipe.learning_rate,
                proposal.key,
                1,
                1000 + digest[2],
                tuple((final[0] * share, final[1] * share) for share in (0.5, 0.8, 1.0)),
            )
        )
    return RecordedTable(study, 1, 10, {}, tuple(entries), len(entries))


def test_every_architecture_is_enumerated_once():
    proposals = list(enumerate_space(parse(TEXT), 1, 10))
    texts = {str(p) for p in proposals}
    # 8 plain (2 sizes x 2 layouts x 2 losses); of 4 steerable layouts 2 are exact and have no loss
    # to choose
    assert len(texts) == len(proposals) == 8 + 2 + 2 * 2
    with pytest.raises(StudyError, match="finite"):
        list(
            enumerate_space(
                parse(TEXT + "\n", overrides={"space.learning_rate": {"low": 0.001, "high": 0.1}}),
                1,
                10,
            )
        )


def test_a_table_is_recorded_written_and_gone_on_with(tmp_path):
    study = parse(
        TEXT,
        overrides={
            "space.group": ["C4"],
            "space.family": ["steerable"],
            "space.equivariance_loss": {"kind": ["none"]},
        },
    )
    path = tmp_path / "table.json.gz"
    table = record(study, path, channels=1, classes=10, workers=1)
    assert (
        len(table.entries) == 4
        and all(len(entry.epochs) == 3 for entry in table.entries)
        and read_table(path) == table
        and all(0 < entry.seconds < 60 for entry in read_table(path).entries)
    )
    seen = []
    again = record(
        study, path, channels=1, classes=10, workers=1, on_entry=lambda *row: seen.append(row)
    )
    assert again.entries == table.entries and not seen
    renewed = record(
        parse(
            TEXT,
            overrides={
                "space.group": ["C4"],
                "space.family": ["steerable"],
                "space.equivariance_loss": {"kind": ["none"]},
                "search.rungs": [2],
            },
        ),
        path,
        channels=1,
        classes=10,
        workers=1,
    )
    assert (
        read_table(path) == renewed
        and renewed.study.search.rungs == (2,)
        and renewed.entries == table.entries
    )
    narrower = parse(
        TEXT,
        overrides={
            "space.group": ["C4"],
            "space.family": ["steerable"],
            "space.equivariance_loss": {"kind": ["none"]},
            "space.input_size": [9],
            "space.layout": ["max2/2", "avg2/2"],
        },
    )
    fewer = record(
        narrower,
        path,
        channels=1,
        classes=10,
        workers=1,
        on_entry=lambda *row: seen.append(row[:2]),
    )
    # what the narrower space does not hold is neither kept nor counted
    assert len(fewer.entries) == 2 and seen == [(2, 2)]
    other = parse(TEXT, overrides={"training.epochs": 2})
    with pytest.raises(StudyError, match="another study"):
        record(other, path, channels=1, classes=10, workers=1)


def test_two_recordings_to_one_file_are_refused_before_anything_is_trained(tmp_path):
    path, given = tmp_path / "t.json.gz", {"channels": 1, "classes": 10, "workers": 1}
    lock = StudyLock(tmp_path, f".{path.name}.lock", path)
    with pytest.raises(LockedError, match=r"t\.json\.gz is being written by .*pid"):
        record(parse(TEXT), path, **given)
    lock.close()
    with pytest.raises(StudyError, match="absent is not a folder"):
        record(parse(TEXT), tmp_path / "absent" / "t.json.gz", **given)


def test_a_pipe_in_place_of_a_table_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "t.json.gz")
    with pytest.raises(StudyError, match="is not a file"):
        read_table(tmp_path / "t.json.gz")


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "broken.gz").write_bytes(b"hello")
    for name, says in (
        ("broken.gz", "is not a recorded table"),
        ("missing.gz", "there is no table"),
    ):
        with pytest.raises(StudyError, match=says):
            read_table(tmp_path / name)


def test_a_table_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr("studies.replays.record.MOST_BYTES", 4 << 20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b'"' + b" " * (40 << 20) + b'"'))
    tracemalloc.start()
    with pytest.raises(StudyError, match="bomb.gz is not .*unpacks to more than 4 MB.*makes one"):
        read_table(tmp_path / "bomb.gz")
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_a_table_whose_bytes_are_damaged_is_refused(tmp_path):
    write_table(made_up(), tmp_path / "t.gz")
    whole = bytearray((tmp_path / "t.gz").read_bytes())
    for place in range(10, len(whole) - 8, 7):
        damaged = whole.copy()
        damaged[place] ^= 0xFF
        (tmp_path / "t.gz").write_bytes(damaged)
        with pytest.raises(StudyError, match="is not a recorded table"):
            read_table(tmp_path / "t.gz")


def test_costs_are_counted(tmp_path):
    table = made_up()
    write_table(table, tmp_path / "t.gz")
    assert read_table(tmp_path / "t.gz") == table
    plain = replay(table, Method("random", optuna="random"), 3)
    assert plain.reached == 3 and all(epochs % 3 == 0 for epochs in plain.epochs)
    everything = replay(
        table,
        Method(
            "ours", changes={"search.rungs": [], "search.sampler": "random", "search.repeats": 1}
        ),
        3,
        share=1.0,
    )
    assert (
        all(epochs % 3 == 0 and epochs <= 3 * len(table.entries) for epochs in everything.epochs)
        and everything.reached == 3
    )
    stopped = replay(
        table,
        Method(
            "ours", changes={"search.rungs": [1], "search.sampler": "random", "search.repeats": 1}
        ),
        8,
    )
    assert min(stopped.epochs) >= 3 and any(epochs % 3 for epochs in stopped.epochs)
    impossible = replay(table, Method("random", optuna="random"), 2, share=1.1)
    assert impossible.reached == 0 and set(impossible.epochs) == {3 * len(table.entries)}


def test_the_methods_compare_ours_with_plain_optuna_and_with_its_parts_left_out():
    names = [method.name for method in methods(made_up())]
    assert names[: names.index("ours")] == list(RIVALS)
    assert any("without rungs" in name for name in names)
    assert 0 < full_volume(made_up()) < 1


@pytest.mark.slow
def test_an_interrupted_recording_keeps_what_is_finished_and_goes_on(tmp_path):
    """As a user: Ctrl-C once, then the same command again."""
    (tmp_path / "study.yaml").write_text(
        TEXT.replace("group: [C1, C4]", "family: [plain]")
        .replace("[8, 9]", "[8, 9, 10]")
        .replace("[none, label]", "[none]")
    )
    command = [
        sys.executable,
        "-m",
        "studies.cli",
        "record",
        "study.yaml",
        "table.gz",
        "--workers",
        "2",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "TMPDIR": str(tmp_path),
    }
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    lines = [process.stderr.readline()]
    while not lines[-1].startswith("1 of 6"):
        assert lines[-1], lines
        lines.append(process.stderr.readline())
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (
        process.returncode == 130
        and out == ""
        and err.splitlines()[-1].startswith("interrupted (SIGINT): ")
    ), err
    kept = len(read_table(tmp_path / "table.gz").entries)
    assert (
        1 <= kept < 6
        and not any(line.startswith(f"{kept + 1} of 6") for line in err.splitlines())
        and "Warning" not in err
    )
    assert not [
        path for path in tmp_path.iterdir() if path.is_dir() and path.name.startswith("tmp")
    ]
    done = subprocess.run(
        command, cwd=tmp_path, text=True, capture_output=True, env=environment, timeout=120
    )
    assert (
        done.returncode == 0
        and done.stderr.count(" of 6: ") == 6 - kept
        and len(read_table(tmp_path / "table.gz").entries) == 6
    )


def test_a_full_disk_keeps_the_trainings_recorded_before(tmp_path, monkeypatch):
    study = parse(
        TEXT,
        overrides={
            "space.group": ["C4"],
            "space.family": ["steerable"],
            "space.equivariance_loss": {"kind": ["none"]},
        },
    )
    path, written = tmp_path / "table.gz", []
    move = os.replace

    def full_the_third_time(source, target):
        if target == path:
            written.append(target)
            if len(written) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        move(source, target)

    monkeypatch.setattr(os, "replace", full_the_third_time)
    with pytest.raises(
        StudyError,
        match="could not be written to .*: No space left on device; what it held before is kept",
    ):
        record(study, path, channels=1, classes=10, workers=1)
    left = {entry.name for entry in tmp_path.iterdir()} - {".table.gz.lock"}
    # the training whose scores found no room in the table is kept
    assert len(read_table(path).entries) == 2 and left == {path.name, ".table.gz.trainings"}
    trained = []
    again = []
    monkeypatch.setattr(
        "trainers.training.train.train",
        lambda *given, train=train: (again.append(given[0]), train(*given))[1],
    )
    assert (
        len(
            record(
                study,
                path,
                channels=1,
                classes=10,
                workers=1,
                on_entry=lambda *entry: trained.append(entry),
            ).entries
        )
        == 4
    )
    assert len(trained) == 2 and len(set(again)) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, ".table.gz.lock"}


def test_an_interrupted_training_goes_on_from_its_epoch_to_the_same_scores(tmp_path, monkeypatch):
    study = parse(
        TEXT,
        overrides={
            "space.family": ["plain"],
            "space.input_size": [8],
            "space.layout": ["max2/2"],
            "space.equivariance_loss": {"kind": ["none"]},
        },
    )
    given = {"channels": 1, "classes": 10, "workers": 1}
    whole = record(study, tmp_path / "whole.gz", **given)
    epochs = []

    def once_interrupted(architecture, config, folder, epoch):
        if len(epochs) == 2:
            epochs.append("interrupted")
            raise LeaveError
        epochs.append(epoch)
        return train(architecture, config, folder, epoch)

    monkeypatch.setattr("trainers.training.train.train", once_interrupted)
    assert record(study, tmp_path / "t.gz", **given).entries == whole.entries
    assert epochs == [1, 2, "interrupted", 3]


def test_each_recorded_score_has_its_place_and_is_rounded(tmp_path, monkeypatch):
    def trained(candidate, config, folder, on_epoch):
        rows = [
            {
                "accuracy": 0.9,
                "symmetry_accuracy": 0.1234567,
                "params": 1,
                "macs": 2,
                "seconds": 1.0,
            },
            {
                "accuracy": 0.8765432,
                "symmetry_accuracy": 0.2,
                "params": 3,
                "macs": 4,
                "seconds": 2.0,
            },
            {"accuracy": 0.7, "symmetry_accuracy": 0.3, "params": 5, "macs": 7, "seconds": 3.69},
        ]
        (folder / ROWS).write_text(json.dumps(rows))

    monkeypatch.setattr("studies.replays.trainings._record_one", trained)
    table = record(parse(TEXT), tmp_path / "t.gz", channels=1, classes=10, workers=1)
    entry = table.entries[0]
    assert entry.epochs == ((0.9, 0.12346), (0.87654, 0.2), (0.7, 0.3))
    assert (entry.params, entry.macs, entry.seconds) == (5, 7, 1.23) and table.total == len(
        table.entries
    ) == 14


def test_a_continued_training_costs_only_what_is_added():
    table = made_up()
    changes = {"search.rungs": [1], "search.sampler": "random", "search.repeats": 1}
    continued = 0
    for seed in range(6):
        steps = list(_driver_steps(table, changes, seed))
        # every architecture trains its first epoch once; two more lead to the end, now or later
        ends = sum(step.scores is not None for step in steps)
        assert sum(step.epochs for step in steps) == len(table.entries) + 2 * ends
        # a stopped trial continues as a new one
        assert len(steps) == len(table.entries) + sum(step.epochs == 2 for step in steps)
        continued += len(steps) - len(table.entries)
    assert continued


@pytest.mark.parametrize("name", RIVALS)
def test_no_rival_pays_twice_and_all_try_the_known_architectures_first(name):
    table = made_up()
    key, run = RIVALS[name]
    most = 4 if name == "Optuna GP" else 40  # it thinks long
    steps = list(itertools.islice(run(table, key, 0), most))
    paid = sum(step.epochs for step in steps)
    assert 3 < paid <= 3 * len(table.entries)
    if name != "MO-ASHA":
        exact, plain = known(table)
        assert [step.scores for step in steps[:2]] == [
            table.by_key[candidate.key].epochs[-1] for candidate in (exact, plain)
        ]
        assert steps[0].epochs == steps[1].epochs == 3
        assert any(step.epochs == 0 for step in steps) or most == 4


def test_the_known_architectures_are_the_exact_and_the_plain_end():
    exact, plain = known(made_up())
    assert verdict(exact.architecture, Group.parse("C4")).exact
    assert str(exact.architecture.group) == "C4" and plain.architecture.group.order == 1
    assert exact.architecture.size == plain.architecture.size


def test_work_counts_epochs_by_their_multiplications():
    table = made_up()
    entries = sorted(table.entries, key=lambda entry: entry.macs)
    cheap, dear = entries[0], entries[-1]
    paid = Paid(table)
    first, second, third = (paid.until(*what) for what in ((cheap, 3), (dear, 1), (dear, 3)))
    assert (first.epochs, second.epochs, third.epochs) == (3, 1, 2)
    assert first.work / 3 / cheap.macs == pytest.approx(second.work / dear.macs)
    assert third.work == pytest.approx(2 * second.work)
    assert (first.scores, second.scores, third.scores) == (cheap.epochs[-1], None, dear.epochs[-1])
    assert paid.until(dear, 3).epochs == 0 and paid.until(None, 3).scores is None


def test_seconds_are_those_of_each_training_and_none_where_one_is_unknown():
    whole = made_up()
    timed = replace(whole, entries=tuple(replace(e, seconds=e.macs / 1000) for e in whole.entries))
    paid = Paid(timed)
    entry = timed.entries[0]
    assert paid.until(entry, 2).seconds == pytest.approx(2 * entry.macs / 1000)
    assert paid.until(entry, 3).seconds == pytest.approx(entry.macs / 1000)
    method = Method("random", optuna="random")
    row = replay(timed, method, 2)
    assert row.epochs == replay(whole, method, 2).epochs
    assert all(0.99 * n < s < 1.3 * n for n, s in zip(row.epochs, row.seconds))
    part = replace(timed, entries=(whole.entries[0], *timed.entries[1:]))
    assert replay(part, method, 2).seconds == () == replay(whole, method, 2).seconds


def test_a_method_needs_the_epochs_up_to_the_goal_and_no_more():
    point = (0.9, 0.9)
    steps = [
        SearchStep(2, 1.0, None, 0.5),
        SearchStep(3, 9.0, (0.1, 0.1), 1.0),
        SearchStep(4, 2.0, point, 2.0),
        SearchStep(5, 1.0, point),
    ]
    goal = front_volume([point], OBJECTIVES)
    assert _needed(goal, 100, iter(steps)) == (9, 12.0, 3.5)
    assert _needed(goal, 9, iter(steps))[0] == 9 and _needed(goal, 4, iter(steps))[0] == 5
    assert _needed(goal, 100, iter(steps[:2])) == (101, 10.0, 1.5)


def test_the_table_of_an_unfinished_recording_is_replayed_as_far_as_it_goes(tmp_path):
    whole = made_up()
    part = replace(whole, entries=whole.entries[::2])
    write_table(part, tmp_path / "t.gz")
    assert read_table(tmp_path / "t.gz") == part
    for method in (
        Method("random", optuna="random"),
        Method("ours", changes={"search.rungs": [1], "search.sampler": "random"}),
    ):
        found = replay(part, method, 2, share=0.7)
        assert found.reached == 2 and max(found.epochs) <= 3 * len(part.entries)
    with pytest.raises(StudyError, match="holds no architecture yet; `equisearch record"):
        replay(replace(whole, entries=()), Method("random", optuna="random"), 1)


def test_a_table_of_an_earlier_version_is_whole(tmp_path):
    write_table(made_up(), tmp_path / "t.gz")
    content = json.loads(gzip.decompress((tmp_path / "t.gz").read_bytes()))
    del content["architectures"]
    (tmp_path / "t.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    assert read_table(tmp_path / "t.gz") == made_up()


def without(key):
    return lambda content: content.pop(key)


def in_entry(key, value):
    return lambda content: content["entries"][1].update({key: value})


@pytest.mark.parametrize(
    "spoil",
    [
        *(without(key) for key in ("format", "study", "channels", "classes", "entries")),
        lambda content: content.update(format="one"),
        lambda content: content.update(format=None),
        lambda content: content.update(channels=0),
        lambda content: content.update(versions=[]),
        lambda content: content.update(study={}),
        lambda content: content.update(entries={}),
        lambda content: content.update(entries=[[1, 2]]),
        lambda content: content["entries"][0].pop("epochs"),
        in_entry("epochs", []),
        in_entry("epochs", [[0.5, 0.5]]),
        in_entry("epochs", [[0.5]] * 3),
        in_entry("epochs", [[0.5, float("nan")]] * 3),
        in_entry("epochs", [[0.5, 7.0]] * 3),
        in_entry("key", None),
        in_entry("learning_rate", "fast"),
    ],
)
def test_an_odd_table_is_refused_in_one_message(tmp_path, spoil):
    path = tmp_path / "t.gz"
    write_table(made_up(), path)
    content = json.loads(gzip.decompress(path.read_bytes()))
    spoil(content)
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(StudyError, match=r"t\.gz is not a recorded table \(.+\); give another"):
        read_table(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        gzip.compress(b"[]", mtime=0),
        gzip.compress(b"\xff", mtime=0),
        gzip.compress(b'{"format": 1', mtime=0)[:-4],
        gzip.compress(b"[" * 200_000, mtime=0),
        gzip.compress(b"{}", mtime=0)[:12] + b"\xff" * 8,
    ],
)
def test_a_file_that_is_not_a_table_is_refused_in_one_message(tmp_path, content):
    (tmp_path / "a b.gz").write_bytes(content)
    with pytest.raises(StudyError, match="is not a recorded table .* STUDY '.*a b.gz'` makes one"):
        read_table(tmp_path / "a b.gz")


def test_quartiles_and_median():
    assert Replayed("x", (1, 2, 3, 4, 10), 5).quartiles == (2, 4)
    assert Replayed("x", (1, 2, 3, 4, 10), 5).median == 3
    assert Replayed("x", (7,), 1).quartiles == (7, 7)


def test_a_table_whose_trainings_have_other_lengths_is_refused(tmp_path):
    table = made_up()
    short = replace(table.entries[1], epochs=table.entries[1].epochs[:2])
    write_table(replace(table, entries=(table.entries[0], short)), tmp_path / "t.gz")
    with pytest.raises(StudyError, match="scores of 2 epochs, and the study trains 3"):
        read_table(tmp_path / "t.gz")


def test_a_sampler_that_only_repeats_itself_still_gets_new_candidates(monkeypatch):
    class Stuck(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study, trial):
            return {}

        def sample_relative(self, study, trial, search_space):
            return {}

        def sample_independent(self, study, trial, name, distribution):
            return getattr(distribution, "choices", [getattr(distribution, "low", 0)])[0]

    table = made_up()
    monkeypatch.setattr(rivals, "_sampler", lambda name, seed: Stuck())
    paid = sum(step.epochs for step in rivals.optuna_steps(table, "tpe", 0))
    assert paid > 3 * 3  # more than the two known ones and its first choice


def test_a_rung_promotes_once_it_holds_as_many_as_one_of_them_is_the_best_third():
    steps = list(itertools.islice(rivals.asha_steps(made_up(), "asha", 0), 4))
    assert [step.epochs for step in steps] == [1, 1, 1, 2]


def test_only_a_gaussian_process_is_asked_a_flat_space(monkeypatch):
    asked = []
    ask = rivals._Pixels.ask

    def noted(self, study, *, flat):
        asked.append(flat)
        return ask(self, study, flat=flat)

    monkeypatch.setattr(rivals._Pixels, "ask", noted)
    for name in ("tpe", "gp"):
        next(rivals.optuna_steps(made_up(), name, 0))
    assert asked == [False, True]
