"""Every proposal of a study, derived again from its journal alone."""

from __future__ import annotations

import gzip
import json
import random
import threading
from pathlib import Path

import pytest

from studies.cli.main import main
from studies.journal.reader import JOURNAL, read_trials
from studies.samplers import factory
from studies.samplers.ehvi import VERSION
from studies.search.driver import SearchDriver
from studies.search.rederive import rederive
from support import trivial

WORKERS = 8


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command; returns (exit status, stdout)."""

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["equisearch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        return ending.value.code or 0, capsys.readouterr().out

    return command


def scores(number, epoch):
    chance = random.Random(f"{number} {epoch}")
    return {"accuracy": chance.random(), "symmetry_accuracy": chance.random()}


def work(driver, until, seed):
    """Trains with workers that report, finish and die in a random order, until `until` trials have
    ended; then the program is killed: what runs is left as it is.
    """
    chance, running = random.Random(seed), {}
    while driver.finished < until:
        while len(running) < WORKERS and (assignment := driver.next()) is not None:
            running[assignment.number] = [
                epoch
                for epoch in driver.study.rungs
                if epoch not in driver.trial(assignment.number).rungs
            ]
        if not running:
            return
        number = chance.choice(list(running))
        if chance.random() < 0.1:
            del running[number]
            driver.finish(number, "lost")
        elif not running[number]:
            del running[number]
            driver.finish(number, "complete")
        else:
            epoch = running[number].pop(0)
            if driver.report(number, epoch, scores(number, epoch)) == "stop":
                del running[number]
                driver.finish(number, "pruned")


def killed_twice(path, **settings):
    """A study of 24 trials on eight workers, killed after 8 and 16, the second time in a write."""
    study = trivial.study(**{"search.trials": 24, "search.rungs": [1], **settings})
    driver = SearchDriver.create(path, study, enqueue=settings.pop("enqueue", ()))
    work(driver, 8, 0)
    driver.close()
    for seed, until in ((1, 16), (2, 24)):
        driver = SearchDriver.open(path)
        work(driver, until, seed)
        driver.close()
        if until == 16:
            with (path / JOURNAL).open("ab") as file:
                file.write(b'{"op_code":8,"worker_id":"x","tri')
    return path


@pytest.mark.parametrize(
    "sampler",
    [
        "ehvi",
        "tpe",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("evolution", "nsga2", "gp")),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("qmc", "grid", "random")),
    ],
)
def test_a_study_with_eight_workers_killed_twice_is_derived_again(tmp_path, sampler):
    finite = {"space.equivariance_loss": {"kind": ["none"]}} if sampler == "grid" else {}
    path = killed_twice(tmp_path / "study", **{"search.sampler": sampler, **finite})
    done = rederive(path)
    sampled = [t for t in read_trials(path) if t.continues is None and t.architecture]
    assert (done.trial, done.reason) == (None, None)
    assert done.again == done.proposals >= len(sampled) >= 16 and done.unrecorded == 0


def test_the_first_proposal_that_comes_out_otherwise_is_named(tmp_path, run):
    path = killed_twice(tmp_path / "study")
    lines = (path / JOURNAL).read_text().splitlines()
    victim = [t.number for t in read_trials(path) if t.continues is None][15]
    place = next(
        i
        for i, line in enumerate(lines)
        if json.loads(line)["op_code"] == 5
        and json.loads(line)["trial_id"] == victim
        and json.loads(line)["distribution"].count("Categorical")
        and len(json.loads(json.loads(line)["distribution"])["attributes"]["choices"]) > 1
    )
    record = json.loads(lines[place])
    record["param_value_internal"] = 1 - min(1, record["param_value_internal"])
    lines[place] = json.dumps(record, separators=(",", ":"))
    (path / JOURNAL).write_text("\n".join(lines) + "\n")
    done = rederive(path)
    assert done.trial == victim and record["param_name"] in done.reason
    assert done.again < done.proposals
    status, said = run("rederive", path)
    assert status == 1
    assert f"trial {victim} is the first that was not: its {record['param_name']} is" in said


def test_studies_of_versions_that_noted_nothing_are_said_to_be(tmp_path, run):
    path = killed_twice(tmp_path / "study", **{"search.sampler": "random"})
    lines = (path / JOURNAL).read_text().splitlines()
    kept = [line for line in lines if '"saw"' not in line]
    (path / JOURNAL).write_text("\n".join(kept) + "\n")
    done = rederive(path)
    assert done.again == 0 and done.unrecorded == done.proposals
    noted = [line for line in lines if '"saw"' in line][:3]
    kept = [line for line in lines if '"saw"' not in line or line in noted]
    (path / JOURNAL).write_text("\n".join(kept) + "\n")
    half = rederive(path)
    assert half.proposals == done.proposals and half.unrecorded == half.proposals - 3
    (path / JOURNAL).write_text("\n".join(line for line in lines if '"saw"' not in line) + "\n")
    status, said = run("rederive", path)
    assert status == 1 and "by a version that did not note what its sampler saw" in said


def test_given_architectures_are_not_the_samplers(tmp_path, run):
    first = "12px: 4k3@C4, 4k3 max2/2, 4k3"
    study = trivial.study(**{"search.trials": 4, "search.rungs": [], "search.first": [first]})
    with SearchDriver.create(tmp_path / "study", study) as driver:
        work(driver, 4, 0)
    done = rederive(tmp_path / "study")
    assert done.given == 1 and done.again == done.proposals
    status, said = run("rederive", tmp_path / "study")
    assert status == 0 and "(100 %); given, inherited or continued were 1" in said


def test_a_trial_taken_back_while_a_sampler_thinks_is_not_proposed_again(tmp_path, monkeypatch):
    """Its worker dies in one thread while another proposes."""
    with SearchDriver.create(tmp_path / "study", trivial.study()) as driver:
        lost = driver.next()
        made = factory.make_sampler

        def slow(*arguments):
            thread = threading.Thread(target=driver.finish, args=(lost.number, "lost"))
            thread.start()
            thread.join()
            monkeypatch.setattr(factory, "make_sampler", made)
            return made(*arguments)

        monkeypatch.setattr(factory, "make_sampler", slow)
        proposed = driver.next()
        assert proposed.number != lost.number and proposed.architecture
        again = driver.next()
        assert (again.number, again.architecture) == (lost.number, lost.architecture)
    assert rederive(tmp_path / "study").trial is None


@pytest.fixture
def by_version_1(tmp_path):
    """A study of 24 trials that `ehvi` proposed before its version was noted."""
    asset = Path(__file__).parent / "assets" / "ehvi_before"
    (tmp_path / "study.yaml").write_text((asset / "study.yaml").read_text())
    (tmp_path / JOURNAL).write_bytes(gzip.decompress((asset / f"{JOURNAL}.gz").read_bytes()))
    return tmp_path


def test_what_an_earlier_ehvi_proposed_is_derived_again(by_version_1):
    done = rederive(by_version_1)
    assert (done.trial, done.reason) == (None, None)
    assert done.again == done.proposals == 21 and done.unrecorded == 0


@pytest.mark.parametrize(("version", "reason"), [(2, "comes out as"), (99, "does not have")])
def test_a_proposal_is_derived_again_by_the_version_that_made_it(by_version_1, version, reason):
    journal = by_version_1 / JOURNAL
    noted = journal.read_text().replace('"saw":{', f'"saw":{{"version":{version},')
    journal.write_text(noted)
    done = rederive(by_version_1)
    assert done.trial is not None and done.again < 21 and reason in str(done.reason)


def test_the_journal_holds_the_version_of_the_sampler(tmp_path):
    for sampler, version in (("ehvi", VERSION), ("random", None)):
        path = tmp_path / sampler
        study = trivial.study(**{"search.trials": 2, "search.sampler": sampler})
        with SearchDriver.create(path, study) as driver:
            work(driver, 2, 0)
        attributes = [trial.attributes for trial in read_trials(path)]
        assert {seen["saw"].get("version") for seen in attributes} == {version}
