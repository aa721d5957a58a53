"""Any torch module softened by projection of its kernels; `equisearch soften module:function`."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from test_cli import run  # noqa: F401  # a fixture
from test_convert import lenet, resnet, trained
from test_soften_command import DIGITS
from torch import nn

from searchspace import Group
from studies.config import parse
from studies.journal.directory import read_study
from studies.journal.reader import read_trials
from studies.journal.repair import repair
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial
from trainers import audit, project
from trainers.actions import act
from trainers.data.datasets import load_data
from trainers.instruments.convert.change_bound import change_bound
from trainers.networks.soft.any_module import distance

C4, D4 = Group.parse("C4"), Group.parse("D4")
MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
    )
"""


def change(module, images, group):
    """The largest change of the logits of each image when it is moved."""
    with torch.no_grad():
        still = module(images)
        moved = [module(act(images, e)) - still for e in group.elements]
    return torch.stack([m.norm(dim=1) for m in moved]).amax(0)


def test_softness_goes_from_exact_to_the_module_itself():
    module = resnet().double()
    images = torch.randn(4, 3, 33, 33, dtype=torch.float64)
    assert audit(module, 33, sizes=False).exact
    whole, strict = project(module, D4, 1.0), project(module, "D4", 0.0, images)
    before = module.state_dict()
    assert all(torch.equal(v, before[name]) for name, v in whole.state_dict().items())
    changes = [float(change(project(module, D4, s), images, D4).max()) for s in (0, 0.3, 1)]
    assert changes[0] < 1e-12 < changes[1] < changes[2]
    assert distance(strict, D4) < 1e-6 < distance(module, D4)
    # statistics are those of the images: the first batch norm gives zero mean, its shift apart
    mean = strict.bn1(strict.conv1(images)).mean((0, 2, 3))
    assert torch.allclose(mean, strict.bn1.bias, atol=1e-6)


class Joined(nn.Module):
    """What a bound must follow: branches, groups, a strided pool with overlap, another slope."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.pool, self.act, self.norm = nn.MaxPool2d(3, 2), nn.GELU(), nn.BatchNorm2d(4)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = self.act(self.norm(self.a(x)))
        x = x + torch.relu(self.b(x))
        x = torch.cat([x, -x], 1)
        return self.last(self.pool(x).mean((2, 3)))


@pytest.mark.parametrize("softness", [0.0, 0.1, 1.0])
def test_the_bound_holds_and_is_zero_for_symmetric_kernels(softness):
    images = torch.randn(5, 2, 9, 9, dtype=torch.float64)
    module = project(trained(Joined()).double(), C4, softness)
    bound, measured = change_bound(module, C4, images), change(module, images, C4)
    assert bool((bound >= measured - 1e-10).all())
    assert (float(bound.max()) < 1e-9) == (softness == 0)


@pytest.mark.parametrize(
    "module, group, softness, message",
    [
        (nn.Linear(2, 2), "C4", 0.5, "no Conv2d"),
        (lenet(), "C4", 1.5, "softness is 1.5; it must be from 0"),
        (lenet(), "C8", 0.5, "cannot be moved by C8.*give C4"),
        (nn.Sequential(nn.Conv2d(1, 2, (1, 3))), "D4", 0.5, "0 has kernels of 1x3.*under D2"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), "C4", 0, "other parameters"),
    ],
)
def test_what_cannot_be_softened_is_refused(module, group, softness, message):
    with pytest.raises(ValueError, match=message):
        project(module, group, softness)


@pytest.fixture
def brought(tmp_path):
    """A file with a model, and a study of digits with one complete trial."""
    file, study = tmp_path / "mine.py", tmp_path / "study"
    file.write_text(MODEL)
    small = DIGITS.replace("epochs: 3", "epochs: 1").replace("trials: 3", "trials: 1")
    small = small[: small.index(", first:")] + "}" + small[small.index("\nresources") :]
    with SearchDriver.create(study, parse(small)) as driver:
        run_in_process(driver)
    return f"{file}:make", study


def test_the_command_puts_any_model_on_a_front(brought, run):
    model, study = brought
    begun = read_trials(study)
    options = ["--softness", "0", "--softness", "1", "--data", str(study), "--front"]
    result = run("soften", model, *options, "--format", "json")
    assert result.status == 0, result.err
    strict, whole, averaged = json.loads(result.out)
    assert strict["change"] < 1e-4 and averaged["change"] < 1e-4 < whole["change"]
    assert strict["bound"] < 1e-6 and whole["bound"] >= whole["change"]
    added = read_trials(study)[len(begun) :]
    assert [strict["front_trial"], whole["front_trial"], averaged["front_trial"]] == [
        r.number for r in added
    ]
    assert [r.attributes["exact"] for r in added] == [True, False, True]
    assert added[2].attributes["macs"] == 4 * added[0].attributes["macs"]
    assert {r.kind for r in added} == {"model"}
    # of the search alone: what is left to try, and the samplers' next, are as they were
    with SearchDriver.open(study, trusted=True) as driver:
        assert driver.finished == 1 and driver._journal.next_number() == 1
    rows = json.loads(run("front", str(study), "--format", "json").out)
    assert {row["trial"] for row in rows} & {r.number for r in added}
    for command in ("show", "trials", "report", "status"):
        number = [str(added[0].number)] if command == "show" else []
        assert run(command, str(study), *number).status == 0
    result = run("measure", f"{study}:{added[2].number}")
    assert result.status == 1 and "trainers.orbit_average(model, 'C4')" in result.err
    again = run("soften", model, *options)
    assert again.status == 0 and "it is trial 1 already" in again.err
    assert len(read_trials(study)) == len(begun) + len(added)


def test_a_model_from_outside_is_exported_where_its_code_may_run(brought, run):
    model, study = brought
    assert run("soften", model, "--softness", "0", "--data", str(study), "--front").status == 0
    averaged = read_trials(study)[-1]
    refused = run("export", str(study), str(averaged.number))
    assert refused.status == 1 and "add --run-code" in refused.err
    assert "or export trial 0, the best compromise of what this study trained" in refused.err
    result = run("export", str(study), str(averaged.number), "--run-code")
    assert result.status == 0, result.err
    folder = Path(result.out.strip())
    program = torch.export.load(folder / "model.pt2").module()
    splits = load_data(read_study(study).data, None)
    images = splits.validation.pixels.float() / 255
    logits, turned = program(images), program(images.rot90(1, (2, 3)))
    right = float((logits.argmax(1) == splits.validation.labels).double().mean())
    assert right == pytest.approx((averaged.scores or {})["accuracy"])
    assert torch.allclose(logits, turned, atol=1e-5)
    assert "[batch, 1, 8, 8]" in (folder / "README.md").read_text()
    file = Path(model.rpartition(":")[0])
    file.write_text(file.read_text().replace("nn.ReLU()", "nn.Tanh()"))
    changed = run("export", str(study), str(averaged.number), "--run-code")
    assert changed.status == 1 and "the function has changed" in changed.err
    file.write_text("def make(): return 3")
    changed = run("export", str(study), str(averaged.number), "--run-code")
    assert changed.status == 1 and "cannot be made again" in changed.err


def test_what_a_model_needs_to_be_softened_is_said(brought, run):
    model, study = brought
    for arguments, said in (
        (["--front", "--data", "quickstart"], "not a study's directory"),
        ([], "--data"),
        (["--data", str(study), "--group", "C8"], "name one of C2, C4"),
    ):
        result = run("soften", model, *arguments)
        assert result.status in (1, 2) and said in result.err


def test_candidates_from_outside_come_back_from_their_folders(brought, run):
    """A journal that is cut, as when the machine stops, is repaired from the folders."""
    model, study = brought
    assert run("soften", model, "--softness", "0", "--data", str(study), "--front").status == 0
    before = [(r.state, r.kind, r.values) for r in read_trials(study)]
    journal = study / "optuna.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: -len(before) + 1]))
    assert len(read_trials(study)) < len(before)
    assert run("repair", str(study)).status == 0
    assert [(r.state, r.kind, r.values) for r in read_trials(study)] == before


@pytest.mark.parametrize("what", ["model", "trial", "repair"])
def test_a_full_disk_is_one_message_and_leaves_nothing(brought, run, monkeypatch, what, tmp_path):
    model, study = brought

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    def listing():
        return {path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)}

    before, trials = listing(), trivial.ended(study)
    monkeypatch.setattr(os, "fsync", full)
    words = {
        "model": ("soften", model, "--softness", "0", "--data", str(study), "--front"),
        "trial": ("soften", str(study), "0", "--softness", "0", "--front"),
        "repair": ("check", model, "--size", "29", "--channels", "1", "--repair"),
    }[what]
    result = run(*words, *([tmp_path / "repaired.pt2"] if what == "repair" else []))
    assert result.status == 1 and result.err.count("error: ") == 1
    assert "o space" in result.err and "free some space" in result.err
    assert listing() == before and trivial.ended(study) == trials
    monkeypatch.undo()
    assert not repair(study)
