"""Trials beside the search, partners of pairs and controls: they wait for the search to end, never
steer it, and outlive a killed driver.
"""

import itertools
import json

import pytest

from searchspace.recipe import Candidate
from studies.evidence import controls, pairs, variants
from studies.evidence.front import best_compromise, front_members
from studies.evidence.intervals import Evidence
from studies.journal.reader import read_trials
from studies.journal.repair import repair
from studies.results import tables
from studies.samplers.factory import SAMPLERS
from studies.search.driver import SearchDriver
from studies.search.proposals import describe_text
from studies.workers.executors import run_in_process
from support import trivial


def run(directory, study, *, partners=0, until=None):
    """Starts or continues a study in this process; leaves after `until` assignments, unfinished."""
    there = (directory / "study.yaml").exists()
    with (
        SearchDriver.open(directory, study)
        if there
        else SearchDriver.create(directory, study) as driver
    ):
        driver.beside.partners = partners
        if until is None:
            run_in_process(driver, trivial.trainable)
            return driver.ended
        for _ in range(until):
            driver.next()
    return None


def proposals(directory):
    return [
        (r.architecture, r.learning_rate, r.state, r.values)
        for r in read_trials(directory)
        if r.kind == "search"
    ]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_no_sampler_sees_trials_beside_the_search(tmp_path, sampler):
    first = {"search__sampler": sampler, "search__trials": 12, "search__startup": 6}
    more = {**first, "search__trials": 18}
    for name, settings in (("alone", "none"), ("beside", "auto")):
        run(tmp_path / name, trivial.study(**first, controls=settings), partners=0)
    run(tmp_path / "beside", trivial.study(**first, controls="auto"), partners=4)
    kinds = [r.kind for r in read_trials(tmp_path / "beside")]
    assert kinds.count("pair") == 4 and kinds.count("control") >= 3
    for name, settings in (("alone", "none"), ("beside", "auto")):
        run(tmp_path / name, trivial.study(**more, controls=settings))
    assert proposals(tmp_path / "beside") == proposals(tmp_path / "alone")
    assert len(proposals(tmp_path / "alone")) >= 18


def test_they_train_to_the_end_and_count_towards_nothing(tmp_path):
    study = trivial.study(controls="auto", search__eta=9, search__patience=50)
    assert run(tmp_path / "s", study) == "trials"
    records = read_trials(tmp_path / "s")
    beside = [r for r in records if r.kind == "control"]
    assert beside and all(r.state == "complete" for r in beside)
    state = tables.status(tmp_path / "s")
    assert sum(state["trials"][s] for s in ("complete", "pruned", "failed")) == 12
    assert state["beside_the_search"] == {"control": len(beside)}
    front = front_members(study, records)
    assert all(r.kind == "search" for r in front)
    # resumed, nothing is left to do
    run(tmp_path / "s", study)
    assert len(read_trials(tmp_path / "s")) == len(records)


def test_none_skips_controls(tmp_path):
    run(tmp_path / "s", trivial.study(controls="none"))
    assert all(r.kind == "search" for r in read_trials(tmp_path / "s"))


def test_a_killed_driver_loses_and_doubles_none(tmp_path):
    study = trivial.study(controls="auto")
    run(tmp_path / "s", trivial.study(controls="none"))
    # the first control is given out, and the driver dies
    run(tmp_path / "s", study, until=1)
    planned = {r.number: r.attributes["role"] for r in read_trials(tmp_path / "s")[12:]}
    states = [r.state for r in read_trials(tmp_path / "s") if r.kind == "control"]
    assert states[0] == "running" and set(states[1:]) == {"waiting"}
    run(tmp_path / "s", study)
    after = [r for r in read_trials(tmp_path / "s") if r.kind == "control"]
    assert {r.number: r.attributes["role"] for r in after} == planned
    assert all(r.state == "complete" for r in after)
    for record in after:
        epochs = (tmp_path / "s" / "trials" / f"{record.number:05d}" / "epochs.txt").read_text()
        assert epochs.split() == [str(n) for n in range(1, 10)]


def test_a_lost_journal_is_rebuilt_with_their_kinds(tmp_path):
    run(tmp_path / "s", trivial.study(controls="auto"))
    before = {r.number: (r.kind, r.attributes.get("role")) for r in read_trials(tmp_path / "s")}
    assert any(kind == "control" for kind, _ in before.values())
    for folder in (tmp_path / "s" / "trials").iterdir():
        rows = [trivial.scores((folder / "architecture.txt").read_text().strip(), e) for e in (9,)]
        (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "s" / "optuna.journal").unlink()
    repair(tmp_path / "s", describe_text, lambda study: (1, 10))
    after = {r.number: (r.kind, r.attributes.get("role")) for r in read_trials(tmp_path / "s")}
    assert {n: after[n] for n in before if n in after} == {
        n: before[n] for n in before if n in after
    }
    assert len(after) == len(before)


def test_controls_are_those_of_the_winner(tmp_path):
    study = trivial.study(controls="auto")
    run(tmp_path / "s", study)
    records = read_trials(tmp_path / "s")
    winner = best_compromise(study, front_members(study, records))
    found = {c.name: c.candidate for c in controls.controls(study, winner, records, 1, 10)}
    base = pairs.candidate_of(winner)
    if base.architecture.group.order > 1:
        twin = found["plain, equal parameters"].architecture
        assert (
            all(stage.group.order == 1 for stage in twin.stages)
            and twin.size == base.architecture.size
        )
    said = controls.comparison(study, records, Evidence.of(tmp_path / "s"))
    assert said["winner"] == winner.number and len(said["controls"]) == len(found)


WINNER = "28px: 10k3@C4, 10k3 max2/2, 10k3 learning_rate=0.01"


@pytest.mark.parametrize(
    "group, wrong", [("C4", "D2"), ("C2", "D1"), ("D1", "C2"), ("D2", "C4"), ("D4", "C8")]
)
def test_a_wrong_group_has_the_same_order_and_other_elements(group, wrong):
    architecture = Candidate.parse(WINNER.replace("C4", group)).architecture
    other = variants.with_wrong_groups(architecture)
    assert str(other.group) == wrong and other.filters == ("basis" if wrong == "C8" else "free")
    assert other.group.order == architecture.group.order


def test_a_restricted_network_keeps_the_orders_of_its_stages():
    chain = Candidate.parse("29px: 8k3@D4, 8k3 max3/2p1, 8k3@C4, 8k3@C1").architecture
    other = variants.with_wrong_groups(chain)
    assert [stage.group.order for stage in other.stages] == [8, 8, 4, 1]


def test_options_change_in_the_text_of_a_candidate():
    base = Candidate.parse(f"{WINNER} loss=latent:0.5 head=group_mean")
    assert "loss=" not in str(variants.with_options(base, loss=None))
    assert str(variants.with_options(base, orbit="C2").architecture.orbit) == "C2"
    with pytest.raises(ValueError, match="nonsense"):
        variants.with_options(base, nonsense="1")


def test_factors_name_the_one_thing_in_which_candidates_differ():
    texts = {
        "group": "28px: 20k3@C2, 20k3 max2/2, 20k3 learning_rate=0.01",
        "input size": WINNER.replace("28px", "29px"),
        "layout": WINNER.replace("max2/2", "avg3/2p1"),
        "loss": WINNER.replace(" learn", " loss=layerwise:1 learn"),
        "head": WINNER.replace(" learn", " head=group_mean learn"),
        "learning rate": WINNER.replace("0.01", "0.02"),
        "orbit": WINNER.replace(" learn", " orbit=C4 learn"),
    }
    base = variants.factors(Candidate.parse(WINNER), widths=False)
    for name, text in texts.items():
        other = variants.factors(Candidate.parse(text), widths=False)
        assert variants.differing(base, other) == [name]
    plain = variants.factors(
        Candidate.parse("28px: 20k3, 20k3 max2/2, 20k3 head=none learning_rate=0.01"), widths=False
    )
    assert variants.differing(base, plain) == ["group"]  # a plain network has no head to choose


def test_pairs_are_found_and_their_partners_are_not_proposed_again(tmp_path):
    study = trivial.study(search__trials=8)
    run(tmp_path / "s", study)
    before = pairs.find_pairs(study, read_trials(tmp_path / "s"))
    run(tmp_path / "s", study, partners=6)
    records = read_trials(tmp_path / "s")
    partners = [r for r in records if r.kind == "pair"]
    assert len(partners) == 6 and len({r.key for r in partners}) == 6
    after = pairs.find_pairs(study, records)
    assert len(after) >= len(before) + 6
    numbers = {frozenset((p.a.number, p.b.number)) for p in after}
    assert all(frozenset((r.number, r.attributes["of"])) in numbers for r in partners)
    # each with the factor that it was trained for
    factors = {frozenset((p.a.number, p.b.number)): p.factor for p in after}
    for record in partners:
        pair = frozenset((record.number, record.attributes["of"]))
        assert factors[pair] == record.attributes["role"]
    rows = pairs.summarise_pairs(after, Evidence.of(tmp_path / "s"))
    assert sum(row["n"] for row in rows) == len(after)
    assert all(row["thin"] == (row["n"] < 3) for row in rows)


def test_pairs_by_lookup_are_those_of_every_comparison(tmp_path):
    study = trivial.study(search__trials=10, space__equivariance_loss={"kind": ["none"]})
    run(tmp_path / "s", study, partners=5)
    records = pairs.compared_trials(read_trials(tmp_path / "s"))
    factors = {r.number: variants.factors(pairs.candidate_of(r), widths=True) for r in records}
    expected = {
        frozenset((a.number, b.number))
        for a, b in itertools.combinations(records, 2)
        if len(variants.differing(factors[a.number], factors[b.number])) == 1
    }
    found = {frozenset((p.a.number, p.b.number)) for p in pairs.find_pairs(study, records)}
    assert found == expected


def test_what_is_left_counts_trials_beside_the_search_alone(tmp_path):
    study = trivial.study(search__trials=4, search__rungs=[], controls="none")
    with SearchDriver.create(tmp_path / "study", study) as driver:
        given = [driver.next() for _ in range(4)]
        assert driver.beside.count(driver._running) == 0 and driver.left == 4
        for number, assignment in enumerate(given, start=1):
            driver.report(assignment.number, 9, trivial.scores(assignment.architecture, 9))
            driver.finish(assignment.number, "complete")
            assert driver.left == 4 - number
