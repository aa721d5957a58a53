"""The recipes for clusters: whole texts, whose commands and options are ours as they are today."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml

from studies.config import parse

RECIPES = Path(__file__).resolve().parents[1] / "studies" / "recipes"
SHELL = sorted(RECIPES.glob("*.sh"))


def commands():
    """Our commands by name, with their options."""
    from studies.cli import main
    from studies.cli.app import app

    assert main.app is app  # it registers the commands
    group = typer.main.get_command(app)
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()
    }


def text_of(path):
    """A recipe without comments, each command on one line."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    if path.suffix == ".yaml":
        return " ".join(lines)
    return "\n".join(lines).replace("\\\n", " ")


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_a_script_is_a_script(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "set -euo pipefail" in path.read_text()


def test_every_recipe_is_described_and_nothing_else_is():
    named = set(re.findall(r"^\| `([\w.]+)`", (RECIPES / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in RECIPES.iterdir()} - {"README.md"}


def test_the_commands_and_options_of_all_recipes_are_ours():
    known, called = commands(), set()
    for path in RECIPES.iterdir():
        for command, arguments in re.findall(
            r"equisearch[\s\"',]+(start|resume|doctor)([^;|&\n]*)", text_of(path)
        ):
            called.add(command)
            options = set(re.findall(r"--[\w-]+", arguments))
            assert options <= known[command], path
        # what is handed on to both
        for arguments in re.findall(r"search\.sh\"?([^;|&\n]*--[^;|&\n]*)", text_of(path)):
            options = set(re.findall(r"\s(--[\w-]+)", arguments.split("shutdownAfter")[0]))
            assert options and options <= known["start"] & known["resume"], (path, options)
    assert called == {"start", "resume", "doctor"}


def test_the_kubernetes_recipe_grows_and_its_settings_are_a_studys():
    job = yaml.safe_load((RECIPES / "kuberay.yaml").read_text())
    assert (job["kind"], job["apiVersion"]) == ("RayJob", "ray.io/v1")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == 0 < workers["maxReplicas"]
    # head and workers see the study under one path
    pods = [cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]]
    mounts = [container["volumeMounts"] for pod in pods for container in pod["containers"]]
    assert mounts[0] == mounts[1] and pods[0]["volumes"] == pods[1]["volumes"]
    given = re.findall(r"--set (\S+?)=(\S+)", job["spec"]["entrypoint"])
    settings = {key: yaml.safe_load(value) for key, value in given}
    assert settings and parse("data: {name: digits}", overrides=settings)


def test_the_image_copies_what_there_is():
    root = RECIPES.parents[1]
    copied = re.findall(r"^COPY (.+) \S+$", (RECIPES / "Dockerfile").read_text(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert names and all((root / name).exists() for name in names)


STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $* RAY_ADDRESS=${RAY_ADDRESS:-}" >> "$CALLS"
"""
RUNS_WHAT_FOLLOWS = STUB + 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'


def run_with_stubs(script, folder, *arguments, **environment):
    """The calls that a recipe makes of programs which this machine lacks, or which take long."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    texts = {
        "scontrol": "#!/bin/sh\nprintf 'node1\\nnode2\\n'\n",
        "srun": RUNS_WHAT_FOLLOWS,
        "ray": RUNS_WHAT_FOLLOWS,
        "equisearch": STUB,
    }
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    calls = folder / "calls"
    calls.unlink(missing_ok=True)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "CALLS": str(calls), **environment}
    where = [script, *map(str, arguments)]
    subprocess.run(["bash", *where], cwd=RECIPES, env=variables, check=True, timeout=60)
    return calls.read_text().splitlines()


def test_the_slurm_recipe_starts_ray_at_the_first_node_and_then_the_study(tmp_path):
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    slurm |= {"SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_ON_NODE": "1"}
    study = tmp_path / "a study.yaml"
    script = RECIPES / "slurm.sh"
    first, last = run_with_stubs(script, tmp_path, study, tmp_path / "run", **slurm)
    assert first.startswith("srun --nodes=2 --ntasks=2 ray symmetric-run --address node1:6379")
    assert "--num-cpus 16 --num-gpus 1" in first and first.endswith("RAY_ADDRESS=node1:6379")
    assert last == (
        f"equisearch start {study} {tmp_path / 'run'} --quiet --workers auto --timeout 11h "
        "RAY_ADDRESS=node1:6379"
    )


def test_a_submitted_job_starts_a_study_and_later_resumes_it(tmp_path):
    script, run = RECIPES / "ray_job.sh", tmp_path / "run"
    submitted, started = run_with_stubs(script, tmp_path, "study.yaml", run)
    assert submitted.startswith(f"ray job submit --working-dir {RECIPES} --entrypoint-num-cpus 1")
    assert started.startswith(f"equisearch start study.yaml {run} --quiet --workers auto")
    run.mkdir()
    (run / "study.yaml").touch()
    _, resumed = run_with_stubs(script, tmp_path, "study.yaml", run)
    assert resumed.startswith(f"equisearch resume {run} --quiet --workers auto")
