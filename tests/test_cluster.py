"""A Ray cluster as a user meets it: addresses, tokens, nodes without this program, data given by a
relative path.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import pytest

from studies.config import parse
from studies.errors import StudyError
from studies.journal.reader import read_trials
from studies.search.driver import SearchDriver
from studies.sections import Resources
from studies.workers import cluster
from studies.workers.ray_executor import run_on_ray
from support import trivial
from support.ray_nodes import ROOT, equisearch, free_port, node, write_images


@pytest.mark.parametrize(
    "address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "127.0.0.1", "host:port"]
)
def test_what_is_no_address_of_a_head_is_refused(address):
    with pytest.raises(StudyError, match=f"'{address}' is not the address.*HOST:PORT"):
        cluster.address_of(Resources(address=address))


def test_the_address_comes_from_the_study_or_the_environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert (
        cluster.address_of(Resources()) == "10.0.0.1:6379"
        and cluster.address_of(Resources(address="head:7000")) == "head:7000"
    )
    assert cluster.address_of(Resources(address="local")) is None
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster.address_of(Resources()) is None


@pytest.mark.parametrize("by", ["option", "variable"])
def test_where_nobody_listens_the_command_ends_before_anything_is_created(tmp_path, by):
    with socket.socket() as held:  # bound, and not listening
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        given = (
            {"arguments": ["--ray-address", address], "variables": {}}
            if by == "option"
            else {"arguments": [], "variables": {"RAY_ADDRESS": address}}
        )
        done = equisearch(
            tmp_path, "start", "quickstart", "runs", *given["arguments"], **given["variables"]
        )
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "runs").exists()
    assert done.stderr.splitlines() == [
        f"error: no Ray cluster is at {address} (Connection refused); `ray start --head "
        f"--port={address[10:]}` "
        "starts one on that host"
    ]


def test_what_listens_and_is_no_ray_is_named_in_time(monkeypatch):
    monkeypatch.setattr(cluster, "CLUSTER_PATIENCE", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(
            StudyError,
            match="something listens at .* has not answered as a Ray cluster does within 4 s",
        ):
            cluster.require_answer(f"127.0.0.1:{server.getsockname()[1]}")


def test_code_is_shipped_beside_what_the_study_asks_for():
    shipped = cluster.shipped(
        Resources(runtime_env={"pip": ["einops"], "py_modules": ["mine"], "env_vars": {"A": "1"}})
    )
    assert shipped["pip"] == ["einops"] and shipped["env_vars"] == {"A": "1"}
    assert [Path(path).name for path in shipped["py_modules"]] == [
        "searchspace",
        "trainers",
        "studies",
        "mine",
    ]


def test_what_a_worker_cannot_see_is_said(tmp_path):
    study = parse(f"data: {{folder: {tmp_path / 'images'}}}")
    assert "does not see the study in" in cluster.unseen(study, str(tmp_path))
    (tmp_path / "study.yaml").touch()
    assert f"does not see the data in {tmp_path / 'images'}" in cluster.unseen(study, str(tmp_path))
    (tmp_path / "images").mkdir()
    assert cluster.unseen(study, str(tmp_path)) is None
    assert "data.root" in cluster.unseen(
        parse(f"data: {{name: mnist, root: {tmp_path / 'absent'}}}"), str(tmp_path)
    )
    assert cluster.unseen(parse("data: {name: digits, root: absent}"), str(tmp_path)) is None


@pytest.mark.usefixtures("connected")
def test_a_study_whose_workers_see_no_data_ends_with_that(tmp_path):
    study = trivial.study(data={"folder": str(tmp_path / "absent")})
    with SearchDriver.create(tmp_path / "study", study) as driver:
        with pytest.raises(StudyError, match="does not see the data in .*absent"):
            run_on_ray(driver, trivial.trainable)
    assert not any(record.state == "failed" for record in read_trials(tmp_path / "study"))


# ---- nodes as processes of their own, without this program
# ----------------------------------------------------------


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python with every library of this one, and without this program."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    there = next(folder.glob("lib/python*/site-packages"))
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if (
            path.suffix != ".pth"
            and not path.name.startswith("equisearch")
            and path.name not in ("searchspace", "trainers", "studies", "__pycache__")
        ) and not (there / path.name).exists():
            (there / path.name).symlink_to(path)
    python = folder / "bin" / "python"
    assert (
        subprocess.run(
            [python, "-c", "import ray, torch, studies"], capture_output=True, text=True, cwd=folder
        )
        .stderr.strip()
        .endswith("'studies'")
    )
    return python


@pytest.fixture
def images(tmp_path):
    """The folder of a study and its images."""
    write_images(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.slow
def test_a_cluster_without_the_program_runs_a_study_with_a_token(tmp_path, bare_python, images):
    """Nodes in another directory that cannot import the program; data by a relative path; a custom
    resource on the second node alone.
    """
    port, token = free_port(), tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    asked = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    address = f"127.0.0.1:{port}"
    # Ray's sockets need a short path
    with (
        tempfile.TemporaryDirectory(prefix="ray") as short,
        node(
            bare_python,
            tmp_path / "n1",
            "--head",
            "--include-dashboard=false",
            f"--port={port}",
            "--num-cpus=1",
            f"--temp-dir={short}",
            HOME=str(tmp_path),
            **asked,
        ),
        node(
            bare_python,
            tmp_path / "n2",
            f"--address={address}",
            "--num-cpus=2",
            '--resources={"special": 2}',
            HOME=str(tmp_path),
            **asked,
        ),
    ):
        for refused in (
            {},
            {"RAY_AUTH_MODE": "token"},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 32},
        ):
            done = equisearch(
                images, "start", "study.yaml", "out", "--ray-address", address, **refused
            )
            assert (
                done.returncode == 1
                and len(done.stderr.splitlines()) == 1
                and "its token is missing or wrong here" in done.stderr
            ), done.stderr
        done = equisearch(images, "start", "study.yaml", "out", "--ray-address", address, **asked)
        assert done.returncode == 0, done.stderr
        # the mode follows
        done = equisearch(
            images,
            "resume",
            "out",
            "--trials",
            5,
            RAY_ADDRESS=address,
            RAY_AUTH_TOKEN=token.read_text(),
        )
        assert done.returncode == 0, done.stderr
    records = [record for record in read_trials(images / "out") if record.state != "refused"]
    assert [record.state for record in records].count("complete") >= 1 and len(records) == 5
    assert {record.state for record in records} <= {"complete", "pruned"}


@pytest.mark.slow
def test_a_submitted_job_runs_on_the_cluster_that_it_is_sent_to(tmp_path, images):
    """The recipe `ray_job.sh` against a head of this machine, twice: it starts, then resumes."""
    pytest.importorskip("aiohttp_cors", reason="submitting needs `pip install 'ray[default]'`")
    port, server, programs = free_port(), free_port(), tmp_path / "bin"
    programs.mkdir()
    here = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    path = os.pathsep.join([str(programs), sysconfig.get_path("scripts"), os.environ["PATH"]])
    for name, module in (("equisearch", "studies.cli.main"), ("ray", "ray.scripts.scripts")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    own = {"PYTHONPATH": here, "PATH": path, "HOME": str(tmp_path)}
    with (
        tempfile.TemporaryDirectory(prefix="ray") as short,
        node(
            sys.executable,
            tmp_path / "head",
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={server}",
            "--num-cpus=2",
            '--resources={"special": 2}',
            f"--temp-dir={short}",
            **own,
        ),
    ):
        script = ROOT / "studies" / "recipes" / "ray_job.sh"
        for word in ("training and", "3 of 3 trials done"):
            done = subprocess.run(
                ["bash", script, images / "study.yaml", images / "out"],
                env={**os.environ, **own, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{server}"},
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0 and word in done.stdout, done.stdout + done.stderr
    records = [record for record in read_trials(images / "out") if record.state != "refused"]
    assert len(records) == 3 and {record.state for record in records} <= {"complete", "pruned"}
