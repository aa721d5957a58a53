"""Ray, started on this machine alone or connected to as a cluster: addresses, tokens, the workers'
code, and what they must see.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, TimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from studies.config import Study
from studies.errors import StudyError
from studies.journal.directory import STUDY
from studies.sections import Resources
from studies.workers.local_ray import (
    ENVIRONMENT,
    first_line,
    local_ray,
    read_environment,
    settings,
    unechoed,
)
from trainers.cores import available_cores
from trainers.files import as_word

CLUSTER_PATIENCE = 30.0  # seconds for a cluster to answer
UNMANAGED = "node_"  # begins the names of node types where no autoscaler starts nodes
AnswerType = TypeVar("AnswerType")
# In a process of its own: Ray tries for ever where something else listens, and what refuses a token
# is said on stderr alone
PROBE = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
ray.shutdown()
"""
TOKEN_ADVICE = (
    "its token is missing or wrong here; set RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or the file "
    "~/.ray/auth_token to the cluster's token "
    "(and RAY_AUTH_MODE, if it is set, to token)"
)


def address_of(resources: Resources) -> str | None:
    """The address of the cluster that a study runs on, from its file or RAY_ADDRESS; None for Ray
    on this machine alone.

    Raises StudyError for an address that is not that of a cluster's head.
    """
    address = resources.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return None
    host, _, port = address.rpartition(":")
    if "://" in address or (address != "auto" and not (host and port.isdigit())):
        raise StudyError(
            f"'{address}' is not the address of a Ray cluster's head; give HOST:PORT (port 6379 "
            "unless `ray start` got another) on a "
            "machine that has joined the cluster, or auto there. Ray Client (ray://) and job "
            "addresses (http://) are not supported"
        )
    return address


@contextmanager
def connected(resources: Resources) -> Iterator[str]:
    """Ray, connected: yields `local`, `cluster`, or `caller` where the caller had connected it.
    Raises StudyError if it cannot be.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield "caller"
        return
    address = address_of(resources)
    if address:
        with _joined(address, resources):
            yield "cluster"
        return
    wanted = (
        0
        if resources.workers == "auto"
        else math.ceil(resources.workers * resources.cpus_per_trial)
    )
    with local_ray(
        num_cpus=max(wanted, available_cores()),
        resources=_local_custom(resources),
        runtime_env=resources.runtime_env or None,
    ):
        yield "local"


@contextmanager
def _joined(address: str, resources: Resources) -> Iterator[None]:
    """This process as a driver of the cluster at `address`, with the cluster's token."""
    require_answer(address)  # before Ray reads the environment: the mode is set here
    with settings(), unechoed():
        import ray

        read_environment()
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=shipped(resources),
            )
        except Exception as error:
            raise StudyError(
                f"the Ray cluster at {address} cannot be used: {first_line(error)}; see "
                "`equisearch doctor`, or run in one process "
                "with `resources: {executor: in_process}`"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def _has_token() -> bool:
    """Whether this process has a token for clusters where Ray looks for one."""
    return (
        bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"))
        or (Path.home() / ".ray" / "auth_token").is_file()
    )


@dataclass(frozen=True)
class Node:
    """The resources of a node, by Ray's names."""

    total: Mapping[str, float]
    free: Mapping[str, float]  # that no process uses now


def living_nodes() -> list[Node]:
    """Every living node."""
    import ray
    from ray._private import state

    free = state.available_resources_per_node()
    return [
        Node(node["Resources"], free.get(node["NodeID"], {}))
        for node in ray.nodes()
        if node["Alive"]
    ]


def autoscaled() -> bool:
    """Whether an autoscaler answers for the cluster that this process has joined.

    Ray's head reports the state of every cluster; without an autoscaler it names each node's type
    after the node. Autoscalers of the second version leave their configuration with the head.
    """
    from ray._private import state
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    try:
        if state.state.get_cluster_config() is not None:
            return True
        report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
        types = (report.get("autoscaler_report") or {}).get("active_nodes") or {}
        return any(not name.startswith(UNMANAGED) for name in types)
    except (AttributeError, ValueError):  # another version of Ray
        return False


def answered(ask: Callable[[], AnswerType], directory: Path) -> AnswerType:
    """What the cluster's head answers. Raises StudyError where the head is gone: Ray would wait,
    and end this process after a minute.
    """
    answer: Future[AnswerType] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(CLUSTER_PATIENCE)
    except TimeoutError:
        raise StudyError(
            f"the head of the Ray cluster has not answered for {CLUSTER_PATIENCE:g} s; nothing "
            f"finished is lost: `equisearch resume {as_word(directory)}` goes on when it is "
            "back, or elsewhere with --ray-address"
        ) from None


def shipped(resources: Resources) -> dict[str, Any]:
    """The runtime environment of a cluster's workers: this code, whatever their nodes have
    installed, and what the study asks for.
    """
    top = Path(__file__).resolve().parents[2]
    ours = [str(top / package) for package in ("searchspace", "trainers", "studies")]
    return {
        "excludes": ["__pycache__"],
        **resources.runtime_env,
        "py_modules": [*ours, *resources.runtime_env.get("py_modules", ())],
    }


def unseen(study: Study, directory: str) -> str | None:
    """What a worker on this machine needs and cannot see, in one line; None if all is there."""
    host = socket.gethostname()
    if not (Path(directory) / STUDY).is_file():
        return (
            f"the worker on {host} does not see the study in {directory}; the directory must lie "
            "where every node finds it under the same path"
        )
    if not os.access(directory, os.W_OK):
        return f"the worker on {host} may not write to {directory}"
    place = study.data.place
    if place is not None and not place.expanduser().exists():
        return (
            f"the worker on {host} does not see the data in {place}; "
            "every node must find it under the same path "
            f"(`data.{'root' if study.data.name else 'folder' if study.data.folder else 'files'}`)"
        )
    return None


@lru_cache
def require_answer(address: str) -> None:
    """Raises StudyError, within PATIENCE, unless a Ray cluster answers at `address` and lets this
    process in.

    A process with a token shows it, unless RAY_AUTH_MODE says otherwise: `ray start` makes one and
    asks for it, `ray.init` does not send it by itself (ray 2.60), and a cluster without tokens lets
    in those that have one, too.
    """
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise StudyError(
            f"no Ray cluster is at {address} ({error.strerror or error}); `ray start --head "
            f"--port={port}` starts one on that host"
        ) from error
    status, said = _probe(address)
    if status == 0:
        return
    if "InvalidAuthToken" in said or "AuthenticationError" in said:
        raise StudyError(
            f"the Ray cluster at {address} does not let this process in: {TOKEN_ADVICE}"
        )
    if status is None:
        raise StudyError(
            f"something listens at {address}, and has not answered as a Ray cluster does within "
            f"{CLUSTER_PATIENCE:g} s"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    raise StudyError(
        f"the Ray cluster at {address} cannot be used: "
        f"{lines[-1] if lines else f'connecting to it ended with status {status}'}"
    )


def _probe(address: str) -> tuple[int | None, str]:
    """The exit status and output of a process that connects to `address`; None where it was ended
    after PATIENCE, or because its token was refused.
    """
    deadline, said = time.monotonic() + CLUSTER_PATIENCE, ""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-c", PROBE, address],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**ENVIRONMENT, **os.environ},
        )
        try:
            while (
                process.poll() is None
                and time.monotonic() < deadline
                and "InvalidAuthToken" not in said
            ):
                time.sleep(0.1)
                said = _text(output)
        finally:
            status = process.poll()
            process.kill()
            process.wait()
        return status, _text(output)


def _text(output: Any) -> str:
    """What another process has written to a file so far."""
    return os.pread(output.fileno(), os.fstat(output.fileno()).st_size, 0).decode(errors="replace")


def _local_custom(resources: Resources) -> dict[str, float] | None:
    number = 1 if resources.workers == "auto" else resources.workers
    return {name: amount * number for name, amount in resources.custom.items()} or None
