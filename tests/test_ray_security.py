"""Who can join a Ray that a study starts on its own machine, and what such a Ray leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from studies.cli import doctor
from studies.errors import StudyError
from studies.sections import Resources
from studies.workers import cluster, local_ray

# of a cluster that asks for none, and of one that does
MINE = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@pytest.fixture(scope="module")
def started():
    """Ray as a study starts it, where ray is imported already and the environment turns tokens off:
    its address, token and folder.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in MINE.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        import ray

        local_ray.read_environment()
        with cluster.connected(Resources(workers=1)) as place:
            assert place == "local"
            node = ray._private.worker._global_node
            yield node.gcs_address, os.environ["RAY_AUTH_TOKEN"], Path(node.get_session_dir_path())
        assert not node.any_processes_alive()
        assert {name: os.environ.get(name) for name in MINE} == MINE
        assert not Path(node.get_session_dir_path()).exists()


def joins(address: str, patch: pytest.MonkeyPatch, **variables: str) -> None:
    """Lets another process join by `ray.init`; raises StudyError if it cannot."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        patch.delenv(name, raising=False)
    for name, value in variables.items():
        patch.setenv(name, value)
    cluster.require_answer.__wrapped__(address)


@pytest.mark.parametrize(
    "variables", [{}, {"RAY_AUTH_MODE": "disabled"}, MINE, {"RAY_AUTH_TOKEN": "f" * 64}]
)
def test_a_process_without_the_token_cannot_join(started, monkeypatch, tmp_path, variables):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StudyError, match="does not let this process in"):
        joins(started[0], monkeypatch, **variables)


def test_a_process_with_the_token_joins(started, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    joins(started[0], monkeypatch, RAY_AUTH_TOKEN=started[1])


def test_the_token_is_new_and_in_no_file_or_command_line(started):
    _, token, folder = started
    assert len(token) == 64 and token != MINE["RAY_AUTH_TOKEN"]
    import psutil

    commands = [
        " ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)
    ]
    assert any("raylet" in command for command in commands) and not any(
        token in command for command in commands
    )
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and not any(token.encode() in path.read_bytes() for path in files)


def test_ray_listens_on_the_loopback_interface_alone_and_its_files_are_private(started):
    address, _, folder = started
    assert address.startswith("127.0.0.1:")
    listeners = local_ray.listeners()
    assert int(address.split(":")[1]) in {port for _, port in listeners}
    found = doctor._reachable(listeners, local_ray.refuses_strangers(address))
    assert (
        found.level,
        "on the loopback interface alone" in found.found,
        "a token is required" in found.found,
    ) == ("ok", True, True)
    assert any(parent.stat().st_mode & 0o077 == 0 for parent in folder.parents)


@pytest.mark.parametrize(
    "address, closed, level, said",
    [
        ("::", True, "note", "on every interface"),
        ("10.1.2.3", True, "note", "on 10.1.2.3"),
        ("::", False, "bad", "NO token is required"),
        ("::ffff:127.0.0.1", False, "bad", "NO token is required"),
    ],
)
def test_doctor_tells_an_open_ray(address, closed, level, said):
    found = doctor._reachable([(address, 7)], closed)
    assert (
        found.level == level and said in found.found and "ports 7 " in found.found and found.remedy
    )


def test_a_ray_that_takes_no_token_is_refused_before_it_starts(monkeypatch):
    import ray._raylet

    before = dict(os.environ)
    monkeypatch.setattr(
        ray._raylet, "get_authentication_mode", lambda: ray._raylet.AuthenticationMode.DISABLED
    )
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("an open Ray was started"))
    if ray.is_initialized():
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(StudyError, match="does not take a token.*install 'ray>=2.52'"):
        with cluster.connected(Resources(address="local")):
            pass
    assert dict(os.environ) == before


def test_under_uv_run_ray_starts_even_where_it_was_imported_before(tmp_path):
    """Ray looks for a process `uv run` above it: then it would upload the working directory and
    start workers through uv.
    """
    code = (
        "import ray; from studies.workers.cluster import connected; from studies.sections import "
        "Resources\n"
        "with connected(Resources(address='local', workers=1)):\n"
        "    print(ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=60), "
        "ray.get_runtime_context().runtime_env)"
    )
    (tmp_path / "uv").symlink_to("/bin/sh")
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    (tmp_path / "run").write_text('"$@"; exit $?\n')
    done = subprocess.run(
        [tmp_path / "uv", "run", sys.executable, "-c", code],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=120,
        env={**own, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
    )
    assert done.returncode == 0 and done.stdout.split() == ["42", "{}"], done.stderr


@pytest.mark.parametrize(("failures", "starts"), [(0, 1), (2, 3), (3, 3)])
def test_a_node_that_starts_too_slowly_is_tried_again(monkeypatch, failures, starts):
    import ray

    calls = []

    def init(**options):
        calls.append(options)
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    if failures < starts:
        with local_ray.local_ray():
            pass
    else:
        with pytest.raises(StudyError, match="does not start: The current node timed out"):
            with local_ray.local_ray():
                pass
    assert len(calls) == starts


def test_a_long_folder_of_temporary_files_is_not_used_or_named(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = local_ray._private_folder()
    folder.rmdir()
    assert len(str(folder)) <= local_ray.LONGEST_FOLDER
    monkeypatch.setattr(local_ray, "SHORT_FOLDER", str(tmp_path / "absent"))
    with pytest.raises(StudyError, match="absent cannot be written .*; set TMPDIR to a writable"):
        local_ray._private_folder()
