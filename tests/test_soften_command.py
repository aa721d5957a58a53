"""`equisearch soften`: points of a trained trial or a bundle, and the best of them as candidates of
the front that no sampler learns from and every command takes.
"""

import shutil
import time

import pytest
import torch
from test_cli import run  # noqa: F401  # a fixture

from searchspace.architecture import Architecture
from searchspace.groups import Group
from searchspace.weights.softened import Softened
from studies.config import parse
from studies.evidence.learned import learned_lines
from studies.journal.reader import read_trials
from studies.journal.storage import open_storage
from studies.results.after.points import ScoredNetwork
from studies.results.after.softening import soften_bundle, soften_trial
from studies.results.tables import _turns
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support.relaxing import stir
from trainers.actions import act
from trainers.networks.networks import build
from trainers.networks.soft.expressing import held_groups, softened_network

PLAIN = "12px: 8k3, 8k3 max2/2 head=none"
MIXED = "12px: 4k3@C4|C2|C1, 4k3 max2/2 head=group_mean"
DIGITS = f"""
data: {{name: digits, train: 120, validation: 60}}
training: {{epochs: 3, batch_size: 40, device: cpu}}
symmetry: {{group: C4}}
space: {{backbone: "4k3, 4k3 *", layout: max2/2, input_size: 12, group: C4, head: group_mean}}
search: {{trials: 3, rungs: [], first: ["{PLAIN}", "{MIXED}", "{MIXED.replace("|C2|C1", "")}"]}}
resources: {{workers: 1}}
objectives: [accuracy, symmetry_accuracy, params]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study with a plain, a mixed and an exact trial."""
    path = tmp_path_factory.mktemp("softening") / "study"
    with SearchDriver.create(path, parse(DIGITS)) as driver:
        run_in_process(driver)
    return path


def made(text):
    """A network in double precision whose parameters are stirred, and images."""
    network = stir(build(Architecture.parse(text), channels=1, classes=3)).double()
    images = torch.rand(8, 1, *network.architecture.size, dtype=torch.float64)
    network(images)
    return network.eval(), images


@pytest.mark.parametrize(
    "text,how,becomes",
    [
        (PLAIN, "softness 0 of C4", "12px: 2k3@C4, 2k3 max2/2 head=group_mean"),
        (PLAIN, "softness 0.5 of C4", PLAIN),
        ("12px: 8k3, 8k3 head=block_max:C4", "softness 0 of C4", "12px: 2k3@C4, 2k3"),
        ("12px: 3k3@C4+C1, 3k3", "softness 0 of C4", "12px: 3k3@C4, 3k3"),
        ("12px: 3k3@C4~0.3", "softness 0.5 of C2", "12px: 12k3 head=block_max:C4"),
        ("12px: 4k3@D4|C4, 4k3r", "orbit average of D4", "12px: 4k3@D4|C4, 4k3r orbit=D4"),
    ],
)
@torch.no_grad()
def test_what_a_network_becomes_is_a_network_of_its_architecture(text, how, becomes):
    network, images = made(text)
    way = Softened.parse(how)
    assert str(way) == how and str(way.architecture(network.architecture)) == becomes
    softened = softened_network(network, way, images)
    assert str(softened.architecture) == becomes and not softened.training
    if way.softness == 0:  # orbit averages included
        for element in way.groups[0].elements:
            change = softened(act(images, element)) - softened(images)
            assert float(change.abs().max()) < 1e-12


@torch.no_grad()
def test_a_mixed_layer_is_held_to_the_group_of_most_weight_or_keeps_its_function():
    network, images = made("12px: 4k3@D4|C4|C1, 4k3x2 max2/2, 4k3@C4 head=group_mean")
    for convolution, alpha in zip(network.convolutions, ((0, 2, 1), (2, 0, 0), (2, 0, 1))):
        convolution.soft.alpha.copy_(torch.tensor(alpha))
    # the second stage is for D4, but what is broken once is not built again
    assert list(map(str, held_groups(network))) == ["C4", "C4", "C4"]
    how = Softened("held", held_groups(network))
    held = softened_network(network, how, images)
    assert str(held.architecture) == "12px: 8k3@C4, 8k3x2 max2/2, 4k3 head=group_mean"
    turned = act(images, Group.parse("C4").elements[1])
    assert float((held(turned) - held(images)).abs().max()) < 1e-12
    last = Softened.parse("held to C1, C1, C1")
    kept = softened_network(network, last, images)
    assert torch.allclose(kept(images), network(images), rtol=0, atol=1e-10)
    assert held_groups(made(PLAIN)[0]) is None
    with pytest.raises(ValueError, match="take head=group_mean"):
        Softened.parse("held to C2").architecture(Architecture.parse("12px: 4k3@C4|C2"))
    with pytest.raises(ValueError, match="is not a mixed layer"):
        Softened.parse("held to C4").architecture(Architecture.parse("12px: 4k3@C4+C2"))


def test_channels_of_a_larger_group_stay_blocks_of_a_maximum_where_a_layer_is_held_to_less():
    mixed = Architecture.parse("12px: 2k3@C4|C1, 2k3@C4|C1")
    held = Softened.parse("held to C4, C1").architecture(mixed)
    assert str(held) == "12px: 2k3@C4, 8k3@C1 head=block_max:C4"
    for groups in ("C4", "C4, C4, C4"):
        with pytest.raises(ValueError, match="groups do not name one for each of 2 stages"):
            Softened.parse(f"held to {groups}").architecture(mixed)


def test_the_points_of_an_exact_trial_are_its_own(tmp_path, trained, run):
    before = (trained / "trials" / "00002" / "checkpoint.pt").read_bytes()
    done = run("soften", trained, 2, "--images", 60, "--softness", 0, "--softness", 1)
    assert done.status == 0, done.err
    assert "orbit average" in done.out and "nothing was trained" in done.err
    points = run("soften", trained, 2, "--images", 60, "--format", "json").json
    assert [p["softness"] for p in points] == [0, 0.25, 0.5, 0.75, 1, None]
    record, whole = read_trials(trained)[2], points[4]
    assert points[0]["architecture"] == record.architecture and whole["how"] is None
    for name in ("accuracy", "symmetry_accuracy", "symmetry_accuracy_worst"):
        assert whole[name] == pytest.approx(record.scores[name])
    for point in points[:5]:  # exact by construction: nothing to soften
        assert point["change"] < 1e-4 and point["bound"] == 0
    assert points[5]["change"] < 1e-4 and points[5]["bound"] is None
    assert (trained / "trials" / "00002" / "checkpoint.pt").read_bytes() == before


def test_what_was_learned_is_shown_by_layer(trained, run):
    shown = run("show", trained, 1).out
    assert "alpha C4 by layer: 0." in shown and "alpha C1 by layer: 0." in shown
    assert "constraint (0: exact) by layer: 0." in shown
    learned = {"width rotation": 0.5, "gamma stage 1 conv1": 0.0}
    distances = {"distance stage 1 conv1": 1e-9, "distance stage 2 conv1": 0.0}
    lines = learned_lines(learned | distances)
    assert lines == [
        "  learned beside the network: width rotation 0.5",
        "  gamma by layer: 0",
        "  distance of the weights from the constraint (0: exact) by layer: 0 in all: as trained, "
        "the weights are those of the constraint",
    ]
    assert _turns({"scores": {"learned": {"width rotation": 0.5}}}) == [
        "learned to turn by ±14 degrees"
    ]
    assert _turns({"scores": None}) == []


def test_points_become_candidates_that_samplers_do_not_see(tmp_path, trained, run):
    path = tmp_path / "study"
    shutil.copytree(trained, path)
    (path / "trials" / "00003").mkdir()  # what a kill before the journal's record leaves
    made = soften_trial(path, 0, softness=(0, 0.5), front=True)
    added = [one["trial"] for one in made["front"] if one["trial"] is not None]
    records = read_trials(path)
    assert added == list(range(3, 3 + len(added))) and len(records) == 3 + len(added) > 3
    assert (path / "orphaned" / "00003").is_dir()
    for record in records[3:]:
        assert (record.kind, record.state, record.attributes["of"]) == ("softened", "complete", 0)
        point = next(p for p in made["points"] if p["how"] == record.attributes["role"])
        assert point["architecture"] == record.architecture
        assert record.values[:2] == pytest.approx((point["accuracy"], point["symmetry_accuracy"]))
    storage, backend = open_storage(path / "optuna.journal")
    assert len(storage.get_all_trials(0)) == 3
    backend.close()
    again = soften_trial(path, 0, softness=(0, 0.5), front=True)["front"]
    assert [one["trial"] for one in again] == [None] * len(added)
    assert f"softened of trial 0: {records[3].attributes['role']}" in run("trials", path).out
    shown = run("show", path, 3)
    assert "made of trial 0 without training" in shown.out
    assert "is softened already" in run("soften", path, 3, "--front").err
    assert run("resume", path, "--trials", 4, "--quiet").status == 0
    assert [r.kind for r in read_trials(path)][-1] == "search"
    text = run("front", path, "--format", "json").json
    assert {row["kind"] for row in text} <= {"search", "softened"}


def cannot(subject, softness):
    raise ValueError("no C3")


def test_a_softened_candidate_is_exported_retrained_and_repaired(
    tmp_path, trained, run, monkeypatch
):
    path = tmp_path / "study"
    shutil.copytree(trained, path)
    made = soften_trial(path, 0, softness=(0.0,), front=True)["front"]
    number = next(one["trial"] for one in made if one["trial"] is not None)
    record = read_trials(path)[number]
    done = run("retrain", path, "--trial", number, "--seeds", 1, "--format", "json")
    assert done.status == 0, done.err
    assert done.json[0]["architecture"] == record.architecture
    retrained = run("export", path, number, "--retrained", "--out", tmp_path / "again")
    assert retrained.status == 0, retrained.err
    bundle = tmp_path / "bundle"
    assert run("export", path, number, "--out", bundle).status == 0
    points = run("soften", bundle, "--data", path / "study.yaml", "--format", "json").json
    whole = next(p for p in points if p["softness"] == 1)
    assert whole["accuracy"] == pytest.approx(record.scores["accuracy"])
    began = time.perf_counter()
    alone = soften_bundle(bundle, parse(DIGITS), softness=(1.0,), images=20)
    assert 0 < alone["seconds"] <= time.perf_counter() - began
    monkeypatch.setattr(ScoredNetwork, "at_softness", cannot)
    refused = run("soften", bundle, "--data", path / "study.yaml")
    assert refused.status == 1 and f"{bundle} cannot be softened: no C3" in refused.err
    assert "name the study" in run("soften", bundle).err
    assert "has no trials" in run("soften", bundle, 1).err
    journal = path / "optuna.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: -1 * len(made)]))
    assert run("repair", path).status == 0
    mended = read_trials(path)[number]
    assert (mended.kind, mended.values, mended.trained) == (
        "softened",
        record.values,
        record.trained,
    )


@pytest.mark.parametrize(
    "words,message",
    [
        ((2, "--softness", 1.5), "softness is 1.5; it must be from 0"),
        ((2, "--group", "D4"), "on which the elements of D4 do not act"),
        ((2, "--group", "C8"), "not quarter turns"),
        ((2, "--group", "C1"), "leave every weight alone; name one of C2"),
        ((), "name a trial of the study"),
    ],
)
def test_what_cannot_be_softened_is_one_message(trained, run, words, message):
    done = run("soften", trained, *words)
    assert done.status in (1, 2) and message in done.err and "Traceback" not in done.err


def test_a_group_that_does_not_keep_the_shape_of_the_images_is_named(tmp_path, run):
    path = tmp_path / "study"
    first = {"search.trials": 1, "search.first": "8x12px: 4k3 head=none"}
    study = parse(DIGITS, overrides={"training.epochs": 1, **first})
    with SearchDriver.create(path, study) as driver:
        run_in_process(driver)
    refused = run("soften", path, 0)
    assert refused.status == 1 and "8x12 px, a shape that the quarter turns of C4" in refused.err
    assert run("soften", path, 0, "--group", "D1", "--softness", 0).status == 0


def test_a_place_that_holds_nothing_to_soften_is_named(tmp_path, trained, run):
    refused = run("soften", tmp_path / "nothing")
    assert refused.status == 2 and "is neither a study's directory nor" in refused.err
    assert "name a trial of the study" in run("soften", trained).err


def test_seconds_are_those_that_softening_took(trained):
    began = time.perf_counter()
    result = soften_trial(trained, 0, images=20)
    assert 0 < result["seconds"] <= time.perf_counter() - began
    share = result["share_of_training"]
    assert share == pytest.approx(result["seconds"] / result["training_seconds"])
