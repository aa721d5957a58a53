"""A study, its journal, a retrained result and a bundle that version 0.1.0 wrote still open.

`assets/study` was searched, and `assets/bundle` exported, before the code moved into sub-packages;
`assets/trials.json` and `assets/front.json` are what `equisearch trials` and `equisearch front`
printed then. Of the checkpoints those of two trials are kept.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import run  # noqa: F401
from support.isolation import accuracies

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(__file__).parent / "assets"


def equisearch(*words):
    """What a command prints; fails the test if the command fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "studies.cli", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def study(tmp_path):
    """A copy that may be written to."""
    return Path(shutil.copytree(ASSETS / "study", tmp_path / "study"))


@pytest.mark.parametrize("command", ["trials", "front"])
def test_an_old_journal_reads_as_it_did(study, command):
    now, then = (
        json.loads(equisearch(command, study, "--format", "json")),
        json.loads((ASSETS / f"{command}.json").read_text()),
    )
    assert [{key: row[key] for key in old} for row, old in zip(now, then, strict=True)] == then


def test_an_old_study_goes_on_from_where_it_was(study):
    before = json.loads((ASSETS / "trials.json").read_text())
    equisearch("resume", study, "--trials", len(before) + 1, "--workers", "1", "--quiet")
    after = json.loads(equisearch("trials", study, "--format", "json"))
    kept = [row for row in after if row["trial"] < len(before)]
    assert [{key: row[key] for key in old} for row, old in zip(kept, before, strict=True)] == before
    assert sum(row["state"] in ("complete", "pruned") for row in after) == len(before) + 1


def test_an_old_trial_can_be_exported_and_reported(study, tmp_path):
    equisearch("export", study, 7, "--out", tmp_path / "bundle")
    assert json.loads(equisearch("verify", tmp_path / "bundle", "--format", "json"))["good"]
    equisearch("report", study)
    # the test accuracy of the retrained trial 9
    assert "47.6" in (study / "report.html").read_text()


def test_an_old_bundle_verifies_and_runs_with_torch_alone(tmp_path):
    import torch

    bundle = Path(shutil.copytree(ASSETS / "bundle", tmp_path / "bundle"))
    assert json.loads(equisearch("verify", bundle, "--format", "json"))["good"]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 1, 16, 16), generator=generator, dtype=torch.uint8)
    values = accuracies(bundle, pixels, torch.arange(64) % 10, tmp_path)
    assert len(set(values)) == 1


@pytest.mark.parametrize("condition", ["state = stopped", "state == 'pruned'", 'state=="stopped"'])
def test_what_a_rung_ended_has_one_name(study, run, condition):
    """One word for what a rung ended; JSON keeps the word of Optuna and of earlier versions."""
    text = run("status", study).out + run("trials", study, "--where", condition).out
    assert "5 stopped" in text and text.count("stopped") == 6 and "pruned" not in text
    number = run("trials", study, "--where", condition, "--format", "json").json[0]["trial"]
    assert run("show", study, number).out.startswith(f"trial {number}: stopped")
    rows = run("trials", study, "--format", "json").json
    assert sum(row["state"] == "pruned" for row in rows) == 5
    assert run("status", study, "--format", "json").json["trials"]["pruned"] == 5
    for words in (("export", study, number), ("compare", study, number, "0"), ("report", study)):
        _, out, err = run(*words)
        assert "pruned" not in out + err
    assert "pruned" not in (study / "report.html").read_text()
