"""Ray on this machine alone: each start has a token of its own, listens on the loopback interface
and keeps its files private.

Ray's servers would listen on every interface, and whoever can join a Ray without a token runs code
as its user. Ray reads its settings when it is imported; where it already was, they are set in it as
well, and put back afterwards.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studies.errors import StudyError

log = logging.getLogger(__name__)

START_ATTEMPTS = 3  # at starting Ray
OBJECT_STORE = 128 * 2**20  # bytes: nothing large passes through it
# characters: Ray's sockets lie 65 below it, and a socket's path has 107 at most
LONGEST_FOLDER = 40
SHORT_FOLDER = "/tmp"  # where the folder of temporary files has a longer path
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # else Ray warns of a change to come, once per worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # else Ray, under `uv run`, uploads the working directory and starts each worker through uv;
    # `resources.runtime_env` can ask for that
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
# 0: a Ray of one node, on 127.0.0.1, as on macOS
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
STRANGER = """
import sys
from ray._raylet import GcsClient
try:
    client = GcsClient(address=sys.argv[1])
    client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster", timeout=10)
except Exception as error:
    if "InvalidAuthToken" in str(error):
        sys.exit("InvalidAuthToken")
    sys.exit(f"{type(error).__name__}: {error}")
"""


@contextmanager
def settings() -> Iterator[None]:
    """Ray's settings of this program, also in a Ray that is imported already; what the environment
    sets stays.
    """
    with _environment({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}):
        from ray._private import ray_constants

        before = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = os.environ[
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
        ].lower() in ("1", "true")
        try:
            yield
        finally:
            ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before


@contextmanager
def guarded_by_token() -> Iterator[str]:
    """A new token for the Ray that is started inside, whatever the environment says of tokens;
    yields a private folder for Ray's files.

    Afterwards the environment is as before, and Ray reads it anew. The folder is removed, unless an
    error leaves its logs of interest. Raises StudyError where Ray takes no token.
    """
    token = secrets.token_hex(32)
    changes = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_AUTH_TOKEN_PATH": None,
        LOOPBACK_VARIABLE: "0",
    }
    with settings():
        try:
            with _environment(changes), _on_loopback():
                _require_token(token)
                folder = _private_folder()
                yield str(folder / "ray")
        finally:
            read_environment()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def local_ray(**options: Any) -> Iterator[None]:
    """A Ray on this machine that only this run can join, shut down at the end; `options` are those
    of `ray.init`.

    Raises StudyError, with the place of Ray's logs, if it does not start.
    """
    with guarded_by_token() as folder, unechoed():
        import ray

        _start(folder, options)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def unechoed() -> Iterator[None]:
    """Ray's own messages of errors, which are its C++ logs and go to stdout, are debug lines of
    this program's log inside.
    """
    from ray._private import worker

    before = getattr(worker, "print_to_stdstream", None)

    def kept(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        log.debug("Ray: %s", " ".join(map(str, data.get("lines", ()))))

    worker.print_to_stdstream = kept
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _start(folder: str, options: Mapping[str, Any]) -> None:
    """Starts Ray; a node that has not started in time is tried again, since Ray waits 30 s for it
    and a busy machine takes longer.

    Raises StudyError if it does not start.
    """
    import ray

    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
                **options,
            )
            return
        except Exception as error:  # Ray raises bare ones, of a node that starts too slowly too
            ray.shutdown()
            if attempt < START_ATTEMPTS and "timed out" in str(error):
                log.warning(
                    "Ray did not start in time; attempt %d of %d", attempt + 1, START_ATTEMPTS
                )
                continue
            raise StudyError(
                f"Ray on this machine does not start: {first_line(error)}; its logs are in "
                f"{folder}; see `equisearch doctor`, "
                "or run in one process with `resources: {executor: in_process}`"
            ) from error


def read_environment() -> None:
    """Makes an imported Ray read mode and token from the environment, as it does when it is
    imported; Ray before 2.52 knows neither.
    """
    try:
        from ray._raylet import (
            AuthenticationTokenLoader,  # pyright: ignore[reportAttributeAccessIssue]  # compiled
            Config,  # pyright: ignore[reportAttributeAccessIssue]
        )

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()
    except (ImportError, AttributeError):
        pass


def listeners() -> list[tuple[str, int]]:
    """(address, port) of every TCP socket on which this process and those it started listen."""
    import psutil
    import ray  # noqa: F401  (brings psutil)

    addresses: set[tuple[str, int]] = set()
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            connections = (
                process.net_connections()
                if hasattr(process, "net_connections")
                else process.connections()
            )
        except psutil.Error:  # it has ended
            continue
        addresses |= {
            (connection.laddr.ip, connection.laddr.port)
            for connection in connections
            if connection.status == psutil.CONN_LISTEN
        }
    return sorted(addresses)


def refuses_strangers(address: str) -> bool:
    """Whether the Ray at `address` refuses a process without its token. Raises StudyError if it
    answers neither way within 60 s.
    """
    stranger = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, address],
            env={**stranger, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        raise StudyError(
            f"the Ray at {address} does not answer a process without a token within 60 s"
        ) from None
    said = done.stderr.strip().splitlines()
    if done.returncode and said[-1:] != ["InvalidAuthToken"]:
        raise StudyError(
            f"the Ray at {address} cannot be examined: "
            f"{said[-1] if said else f'status {done.returncode}'}"
        )
    return bool(done.returncode)


def ended_server() -> str | None:
    """The server of the Ray on this machine that has ended, such as raylet; None while all run.

    Ray itself notices after half a minute, and then ends this process.
    """
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    started = getattr(node, "all_processes", {})
    for name in ("raylet", "gcs_server"):
        if any(info.process.poll() is not None for info in started.get(name, ())):
            return name
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type where it has none."""
    return next((line for line in str(error).strip().splitlines()), type(error).__name__)


def _require_token(token: str) -> None:
    """Makes Ray read the environment; raises StudyError unless it then asks for `token`."""
    read_environment()
    import ray

    try:
        from ray._raylet import (
            AuthenticationMode,  # pyright: ignore[reportAttributeAccessIssue]  # compiled
            AuthenticationTokenLoader,  # pyright: ignore[reportAttributeAccessIssue]
            get_authentication_mode,  # pyright: ignore[reportAttributeAccessIssue]
        )

        held = AuthenticationTokenLoader.instance().get_raw_token()
        good = get_authentication_mode() == AuthenticationMode.TOKEN and held == token
    except (ImportError, AttributeError):
        good = False
    if not good:
        raise StudyError(
            f"Ray {ray.__version__} does not take a token, and without one others who reach "
            "this machine could run code as you; "
            "install 'ray>=2.52', or run in one process with `resources: {executor: in_process}`"
        )


def _private_folder() -> Path:
    """A new folder that only this user can enter: Ray lets all users write to its own. Short, since
    sockets lie in it. Raises StudyError, with the variable to set, where there is none.
    """
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    try:
        wanted = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    except OSError:  # no folder of temporary files can be written
        wanted = SHORT_FOLDER
    short = len(wanted) + len("/ray12345678/ray") <= LONGEST_FOLDER
    folder = wanted if short else SHORT_FOLDER
    try:
        return Path(tempfile.mkdtemp(prefix="ray", dir=folder))
    except OSError as error:
        raise StudyError(
            f"Ray's sockets need a folder with a short path, and {folder} cannot be written "
            f"({error.strerror}); set {name} to a writable folder whose path has "
            f"at most {LONGEST_FOLDER - len('/ray12345678/ray')} characters"
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Lets Ray, which may be imported already, take 127.0.0.1 as this machine's address."""
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """The environment with `changes`, None removing a variable; put back afterwards."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
