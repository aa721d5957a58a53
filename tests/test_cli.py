"""The command line as a user meets it: results on stdout, progress on stderr, exit statuses, and
clear refusals.
"""

import csv
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from studies.journal import reader
from support.commands import run  # noqa: F401

SMALL = [
    "--set",
    "controls=none",
    "--set",
    "data.train=200",
    "--set",
    "data.validation=80",
    "--epochs",
    "2",
    "--trials",
    "3",
    "--workers",
    "1",
    "--quiet",
    "--set",
    "space.input_size=12",
    "--set",
    "space.backbone=4k3, 4k3 *, 4k3",
    "--set",
    "space.width=null",
    "--set",
    "space.restrict={}",
    "--set",
    "search.first=[]",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished small study on digits, made by the command line itself."""
    directory = tmp_path_factory.mktemp("cli") / "study"
    done = subprocess.run(
        [sys.executable, "-m", "studies.cli", "start", "quickstart", str(directory), *SMALL],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert "front:" in done.stdout and "ended: all trials are done" in done.stderr
    said = done.stderr.split("next, one line each:\n")[1].splitlines()
    words = [shlex.split(line) for line in said if line.startswith("  equisearch ")]
    assert [line[1] for line in words] == ["report", "retrain", "export"]
    assert all(line[2] == str(directory) and "|" not in line for line in words)
    return directory


def test_reading_commands_print_stable_json(run, study):
    status = run("status", study, "--format", "json").json
    assert {"trials", "front_size", "hypervolume"} <= status.keys()
    assert {"complete", "pruned", "failed", "running"} <= status["trials"].keys() and sum(
        status["trials"].values()
    ) == 3
    front = run("front", study, "--format", "json").json
    assert len(front) == status["front_size"] > 0
    for row in front:
        assert {"trial", "architecture", "values", "params", "macs", "exact"} <= row.keys() and {
            "accuracy",
            "symmetry_accuracy",
        } <= row["values"].keys()
    shown = run("show", study, front[0]["trial"], "--format", "json").json
    assert shown["architecture"] == front[0]["architecture"] and shown["rungs"]


def test_the_front_is_drawn_under_its_table_and_as_a_figure(run, study, tmp_path):
    done = run("front", study, "--figure", tmp_path / "front.svg")
    assert (
        "symmetry accuracy, % (up) by accuracy, % (right)" in done.out
        and "*" in done.out
        and (tmp_path / "front.svg").stat().st_size > 1000
    )
    refused = run("front", study, "--figure", tmp_path / "front.bmp")
    assert (
        refused.status == 2
        and "end its name in .png, .svg or .pdf" in refused.err
        and "Traceback" not in refused.err
    )


def test_trials_load_as_csv(run, study):
    rows = list(csv.DictReader(io.StringIO(run("trials", study, "--format", "csv").out)))
    assert (
        len(rows) == 3
        and {"trial", "state", "architecture", "values.accuracy", "params"} <= rows[0].keys()
    )
    assert all(0 <= float(row["scores.accuracy"]) <= 1 for row in rows)


def test_tables_are_for_people(run, study):
    for command in ("status", "trials", "front"):
        found = run(command, study)
        assert found.status == 0 and found.out.strip() and "\x1b" not in found.out
    assert "12px" in run("show", study, 0).out


def test_show_draws_the_exactness_of_the_trial(run, study):
    front = run("front", study, "--format", "json").json
    found = run("show", study, front[0]["trial"])
    assert found.status == 0 and "epoch 2" in found.out and "D4" in found.out


def test_show_counts_what_a_network_costs_on_the_channels_and_classes_of_the_study(
    run, study, monkeypatch
):
    monkeypatch.setattr(reader, "study_attributes", lambda _: {"channels": 3, "classes": 7})
    front = run("front", study, "--format", "json").json
    assert "3 x 12 px" in run("show", study, front[0]["trial"]).out


def test_train_prints_scores_and_accuracy_by_angle(run):
    found = run(
        "train",
        "quickstart",
        "12px: 4k3@C4, 4k3 max2/2, 4k3",
        "--epochs",
        2,
        "--set",
        "data.train=200",
        "--set",
        "data.validation=80",
        "--quiet",
        "--format",
        "json",
    )
    value = found.json
    assert {"scores", "accuracy_by_angle", "seconds", "epochs"} <= value.keys() and value[
        "epochs"
    ] == 2
    angles = value["accuracy_by_angle"]
    assert (
        len(angles) == 36
        and angles["0"]
        == angles["90"]
        == angles["180"]
        == angles["270"]
        == value["scores"]["accuracy"]
    )


def test_train_goes_on_from_its_directory(run, tmp_path):
    words = [
        "train",
        "quickstart",
        "12px: 4k3, 4k3",
        "--set",
        "data.train=200",
        "--set",
        "data.validation=80",
        "--out",
        tmp_path / "one",
        "--epochs",
        2,
    ]
    first = run(*words)
    again = run(*words)
    assert (
        "epoch 2 of 2" in first.err
        and "epoch" not in again.err
        and first.out.splitlines()[2] == again.out.splitlines()[2]
    )


def test_presets_are_listed_and_printed(run):
    listed = run("presets", "--format", "json").json
    assert {"quickstart", "mnist", "folder"} <= {row["name"] for row in listed} and all(
        row["about"] for row in listed
    )
    assert "backbone" in run("presets", "quickstart").out and run("presets", "nothing").status == 1
    assert "properties" in run("presets", "--schema").json


@pytest.mark.parametrize(
    "words,status,says",
    [
        (["status", "nowhere"], 1, "holds no study"),
        (["front", "nowhere"], 1, "holds no study"),
        (["resume", "nowhere"], 1, "holds no study"),
        (["start", "nothing.yaml", "x"], 1, "no study file 'nothing.yaml'"),
        (["train", "quickstart", "12: 3"], 1, "not an architecture"),
        (["train", "quickstart", "12px: 4k3@E4"], 1, "no group"),
        (["start", "quickstart", "x", "--trials", "0"], 2, "--trials"),
        (["nonsense"], 2, "nonsense"),
        (["retrain", "x", "--seeds", "1000000000000"], 2, "--seeds"),
        (["relax", "x", "1", "--stage", "1", "--to", "C1", "--epochs", str(10**9)], 2, "--epochs"),
        (["reproduce", ""], 2, "has no name"),
        (["reproduce", "s3://bucket/x"], 2, "remote store"),
        (["train", "quickstart", "17px: 6k3", "--out", "s3://bucket/x"], 2, "remote store"),
        (["export", "x", "1", "--out", "file:///tmp/x"], 2, "remote store"),
        (["report", "x", "--out", "gs://bucket/x.html"], 2, "remote store"),
        (["record", "quickstart", "s3://bucket/x.gz"], 2, "remote store"),
        (["start", "quickstart", "~nobody-here/x"], 2, "does not know"),
        (["compare", "x", "3", "3"], 2, "A and B are both 3; name two different trials"),
        (["check", "28px: 4k3 drop0.3, 4k3"], 1, "without a space, such as 4k3drop0.3"),
        (["check", "28px: 4k3@C4 max2/2 i0.5"], 1, "such as 4k3@C4i0.5"),
        (["start", "quickstart", "x", "--set", "search.sampler=foo"], 1, "tpe"),
        (["start", "quickstart", "x", "--set", "foo"], 2, "KEY=VALUE"),
        (["start", "quickstart", "x", "--set", "space.grup=C4"], 1, "group"),
        (["start", "quickstart", "x", "--workers", "none"], 2, "auto"),
        (["start", "quickstart", "x", "--set", "data={folder: nowhere}"], 1, "nowhere"),
        (["train", "quickstart", "3px: 4k5p0"], 1, "larger input"),
        (["train", "quickstart", "9px: 4k3 loss=projection:1@C8"], 1, "its subgroup C4"),
        (["check", "9px: 4k3 loss=projection:1@C3"], 1, "name one of C2, C4"),
        (["start", "quickstart", "x", "--set", "data.train=99999"], 1, "99"),
        (["start", "quickstart", "x", "--set", "data.name=mnst"], 1, "mnist"),
        (
            [
                "start",
                "quickstart",
                "x",
                "--set",
                "space.layout=max2/2",
                "--set",
                "space.input_size=2",
            ],
            1,
            "fits",
        ),
    ],
)
def test_bad_input_gets_one_clear_message(run, tmp_path, monkeypatch, words, status, says):
    monkeypatch.chdir(tmp_path)
    found = run(*words)
    assert found.status == status and says in found.err and "Traceback" not in found.err, found.err
    assert not found.out and not (tmp_path / "x").exists()
    if status == 1:
        assert found.err.startswith("error: ") and len(found.err.strip().splitlines()) <= 2


def test_an_unknown_trial_and_a_taken_directory(run, study):
    assert "trials 0 to 2" in run("show", study, 99).err
    found = run("start", "quickstart", study)
    assert found.status == 3 and "resume" in found.err


def test_a_file_of_the_system_that_cannot_be_used_is_named_without_numbers(run, study, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(study, copied)
    (copied / "optuna.journal").unlink()
    (copied / "optuna.journal").mkdir()
    found = run("front", copied)
    assert found.status == 1 and "Errno" not in found.err
    assert "optuna.journal" in found.err and "repair" in found.err
    long = tmp_path / ("x" * 300)
    found = run("replay", long)
    assert found.status == 1 and "Errno" not in found.err
    assert "cannot be used (File name too long); look whether" in found.err


def test_the_front_shows_one_trial_for_one_reason(run, study):
    found = run("front", study, "--knee", "--best", "accuracy")
    assert found.status == 1 and "give one of them" in found.err


def test_a_trial_may_be_named_by_its_place_on_the_front(run, study):
    rows = run("front", study, "--format", "json").json
    best = next(row["trial"] for row in rows if row["knee"])
    assert run("show", study, "knee", "--format", "json").json["trial"] == best
    accurate = max(rows, key=lambda row: row["values"]["accuracy"])["values"]["accuracy"]
    shown = run("show", study, "accuracy", "--format", "json").json
    assert shown["values"]["accuracy"] == accurate
    refused = run("show", study, "nearly")
    assert (
        refused.status == 2 and "'nearly' is not a valid trial; give a number, knee" in refused.err
    )
    refused = run("retrain", study, "--knee", "--trial", 0)
    assert refused.status == 2 and "give one of them" in refused.err


def test_resume_takes_more_trials_but_no_other_study(run, study):
    refused = run("resume", study, "--set", "training.batch_size=32", "--quiet")
    assert refused.status == 1 and "training.batch_size: 64 -> 32" in refused.err
    more = run("resume", study, "--trials", 4, "--quiet")
    assert (
        more.status == 0
        and sum(run("status", study, "--format", "json").json["trials"].values()) == 4
    )


def test_debug_shows_the_traceback(run):
    assert "Traceback" in run("status", "nowhere", "--debug").err


def test_help_shows_the_whole_sentence_of_every_command_once_under_its_heading(run, monkeypatch):
    from studies.cli.app import PANELS, app

    commands = {
        (c.name or c.callback.__name__): " ".join(c.callback.__doc__.split())
        for c in app.registered_commands
    }
    for columns in ("60", "100", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        found = run("--help").out
        assert "..." not in found.partition("Options:")[2]
        assert max(map(len, found.splitlines())) <= int(columns)
        headings = re.findall(r"^(\S.*):$", found, re.MULTILINE)
        assert headings == ["Options", *PANELS]
        listed = re.findall(r"^ {2}([a-z]+) ", found.partition(f"{PANELS[0]}:")[2], re.MULTILINE)
        assert sorted(listed) == sorted(commands)
        words = " ".join(found.split())
        assert [name for name, sentence in commands.items() if sentence not in words] == []


def test_a_command_line_builds_its_own_command_alone_and_any_other_builds_all():
    from studies.cli.app import app, application

    everything = [c.name or c.callback.__name__ for c in app.registered_commands]
    for name in everything:
        assert [*application([name, "--help"]).commands] == [name]
    for words in ([], ["--help"], ["--help", "front"], ["frnt"]):
        assert [*application(words).commands] == everything


def test_every_command_has_help(run):
    from studies.cli.app import app

    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        found = run(name, "--help")
        assert found.status == 0 and len(found.out.splitlines()) > 5, name


def test_the_dashboard_serves_the_study_on_this_machine(study):
    import socket
    import time
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "studies.cli", "dashboard", str(study), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/api/studies", timeout=5
                ) as answer:
                    found = json.load(answer)
                break
            except OSError:
                assert server.poll() is None, server.stderr.read()
                time.sleep(0.5)
        assert [entry["study_name"] for entry in found["study_summaries"]] == ["equisearch"]
    finally:
        server.terminate()
        server.wait(10)


def test_measure_takes_a_trial_and_any_model(run, study, tmp_path, monkeypatch):
    best = run("front", study, "--format", "json").json[0]["trial"]
    figure = tmp_path / "curve.png"
    found = run(
        "measure", f"{study}:{best}", "--images", 60, "--format", "json", "--figure", figure
    ).json
    assert {
        "symmetry_accuracy",
        "accuracy_by_angle",
        "equivariance_error",
        "lie_derivative",
        "layerwise",
    } <= found.keys() and figure.stat().st_size > 1000
    assert len(found["accuracy_by_angle"]["degrees"]) == 36
    (tmp_path / "mine.py").write_text(
        "import torch\n\ndef model():\n    torch.manual_seed(0)\n    return "
        "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    mine = run(
        "measure",
        f"{tmp_path / 'mine.py'}:model",
        "--data",
        "quickstart",
        "--images",
        60,
        "--group",
        "C4",
        "--format",
        "json",
    ).json
    assert mine["group"] == "C4" and mine["equivariance_error"]["logits"]["mean"] > 0.1
    assert (
        run("measure", f"{tmp_path / 'mine.py'}:model").status == 1
        and "--data" in run("measure", f"{tmp_path / 'mine.py'}:model").err
    )
    assert (
        "not a bundle" in run("measure", str(tmp_path)).err
        and "trials 0 to" in run("measure", f"{study}:99").err
    )


def test_probe_answers_for_the_embedded_digits(run):
    found = run("probe", "quickstart", "--images", 200, "--group", "C2", "--format", "json").json
    assert found["group"] == "C2" and len(found["elements"]) == 1 and found["images"] == 200


@pytest.mark.parametrize("name", ["quickstart", "mnist", "folder"])
def test_presets_begin_with_both_ends_of_the_trade_off(name):
    import yaml

    from searchspace.architecture import Architecture
    from searchspace.exactness import verdict
    from searchspace.groups import Group
    from studies.config import presets

    content = yaml.safe_load(presets()[name].read_text())
    declared = Group.parse(content["symmetry"]["group"])
    exact, plain = (Architecture.parse(text) for text in content["search"]["first"])
    assert (
        verdict(exact, declared).exact
        and len(verdict(exact, declared).invariant) == declared.order
        and plain.family == "plain"
    )


def test_the_first_architectures_are_checked(run, tmp_path):
    found = run("start", "quickstart", tmp_path / "x", "--set", "search.first=['12px: 4k3@E4']")
    assert found.status == 1 and "no group" in found.err


@pytest.mark.parametrize(
    "words,said",
    [
        (
            ["check"],
            "error: Missing argument 'ARCHITECTURE|MODULE:FUNCTION|FILE' (see `equisearch check "
            "--help`)\n",
        ),
        (
            ["chek"],
            "error: No such command 'chek'. Did you mean 'check'? (see `equisearch --help`)\n",
        ),
        (
            ["check", "28px: 10k3", "--format", "xml"],
            "error: Invalid value for '--format': 'xml' is not one of 'table', 'json', 'csv' "
            "(see `equisearch check --help`)\n",
        ),
    ],
)
def test_wrong_words_get_one_line_and_status_2(run, words, said):
    result = run(*words)
    assert (result.status, result.out, result.err) == (2, "", said)


@pytest.mark.parametrize("words,status", [([], 2), (["--help"], 0), (["check", "--help"], 0)])
def test_help_is_printed_when_asked_for_and_without_a_command(run, words, status):
    result = run(*words)
    assert result.status == status and "Usage: equisearch" in result.out + result.err


def test_trials_are_selected_and_compared(run, study):
    front = run("front", study, "--format", "json").json
    knee = run("front", study, "--knee", "--format", "json").json
    assert [row["trial"] for row in knee] == [row["trial"] for row in front if row["knee"]]
    best = run("trials", study, "--best", "accuracy", "--format", "json").json
    assert best[0]["values"]["accuracy"] == max(row["values"]["accuracy"] for row in front)
    assert run("trials", study, "--where", "trial < 2 and params > 1", "--format", "json").json[0]
    nothing = run("front", study, "--where", "params < 1", "--format", "json")
    assert nothing.json == [] and "no trial meets: params < 1" in nothing.err
    wrong = run("front", study, "--where", "prams < 1")
    assert wrong.status == 2 and "similar ones are params" in wrong.err
    assert run("compare", study).status == 2
    two = [row["trial"] for row in run("trials", study, "--format", "json").json if row["scores"]][
        :2
    ]
    value = run("compare", study, *two, "--format", "json").json
    assert value["scores"]["accuracy"]["difference"]["over"] == "images"
    named = run("compare", study, "knee", two[0] if two[0] != knee[0]["trial"] else two[1])
    assert named.status == 0 and f"trial {knee[0]['trial']} " in named.out
    assert run("compare", study, "--pairs", "--format", "json").status == 0
    assert run("compare", study, "--controls", "--format", "json").json["controls"] == []
