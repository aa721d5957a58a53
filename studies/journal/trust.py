"""A study file can run programs: what in it does, and whether this user wrote it on this machine.

`start` signs those parts with a key that lies in the user's own state folder, and puts the
signature into the study's directory: a directory that its owner moves stays trusted, one that came
from elsewhere or was edited does not, until `--trust` says so.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from studies.config import Study
from studies.errors import UntrustedError
from studies.terminal import one_line
from trainers.files import parse_json, read_whole, write_whole

SIGNATURE, KEY = "signature.json", "signing.key"
KEY_BYTES = 32
STATE_VARIABLE = "EQUISEARCH_STATE"  # the environment variable that names the state folder
# Keys of a study that start programs, or let another machine or library act in this user's name;
# and what leaves each out. `address`: a token of this user is shown there, and what the cluster
# answers is unpickled. Loggers read key files and send results away.
ACTING = {
    "resources.runtime_env": "resources.runtime_env={}",
    "resources.address": "resources.address=local",
    "loggers.mlflow": "loggers.mlflow={}",
    "loggers.wandb": "'loggers.wandb={mode: disabled}'",
}
HARMLESS = ("local", "auto")  # addresses: of this machine
Leaves = dict[tuple[str, ...], Any]


def state_directory() -> Path:
    """Where this user's key lies: `EQUISEARCH_STATE`, or `equisearch` in the user's folder for the
    state of programs.
    """
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    if os.name == "nt":
        return (
            Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
            / "equisearch"
            / "State"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "equisearch"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "equisearch"


def acting(study: Study) -> Leaves:
    """The values of the study that make programs or other machines act, by their path of keys;
    empty for most studies.
    """
    content = study.model_dump(mode="json")
    leaves: Leaves = {}
    for key in ACTING:
        section, name = key.split(".")
        leaves.update(_leaves(content[section][name], (section, name)))
    if leaves.get(("resources", "address")) in HARMLESS:
        del leaves["resources", "address"]
    return leaves


def sign_study(directory: Path, study: Study) -> list[str]:
    """Writes down that this user wrote what acts in `study`; returns a warning if that cannot be
    written, else nothing.
    """
    leaves = acting(study)
    if not leaves:
        return []
    try:
        write_whole(
            directory / SIGNATURE,
            json.dumps({"signature": _signature(_key(create=True), leaves)}) + "\n",
        )
    except OSError as error:
        return [
            f"{_names(leaves)} cannot be signed ({error.strerror or error}): `resume` will need "
            f"--trust. Set {STATE_VARIABLE} to a folder "
            "that you alone can read and write"
        ]
    return []


def is_signed(directory: Path, study: Study) -> bool:
    """Whether this user signed what acts in `study`, which the directory holds."""
    try:
        given = parse_json(read_whole(directory / SIGNATURE))["signature"]
        return hmac.compare_digest(str(given).encode(), _signature(_key(), acting(study)).encode())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def require(directory: Path, stored: Study, asked: Study | None = None) -> None:
    """Raises UntrustedError if `asked` takes what acts over from `stored`, the study in
    `directory`, and this user has not signed that.
    """
    foreign = acting(stored)
    if asked is not None:
        now = acting(asked)
        foreign = {
            path: value for path, value in foreign.items() if path in now and now[path] == value
        }
    if not foreign or is_signed(directory, stored):
        return
    without = " ".join(
        f"--set {remedy}"
        for key, remedy in ACTING.items()
        if any(".".join(path[:2]) == key for path in foreign)
    )
    raise UntrustedError(
        f"the study in {directory} sets {_names(foreign)}: this can run programs, or show keys "
        "and tokens to others, and it was not written by a "
        "`start` of this user on this machine, or has been edited since. Read its study.yaml; "
        "give --trust if you trust whoever wrote it, or "
        f"go on without: {without}"
    )


def _names(leaves: Leaves) -> str:
    return one_line(", ".join(".".join(path) for path in leaves))


def _leaves(value: Any, path: tuple[str, ...]) -> Leaves:
    if isinstance(value, dict):
        return {
            p: v
            for key, inner in value.items()
            for p, v in _leaves(inner, (*path, str(key))).items()
        }
    return {} if value is None or value == [] else {path: value}


def _signature(key: bytes, leaves: Leaves) -> str:
    text = json.dumps(sorted([list(path), value] for path, value in leaves.items()), sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(*, create: bool = False) -> bytes:
    """This user's key, made where there is none and `create` says so. Raises OSError if there is
    none that the user alone can read.
    """
    path = state_directory() / KEY
    if create and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # only where a key is made: its import takes a tenth of what a reading command takes
        from filelock import FileLock

        with FileLock(path.with_name(KEY + ".lock")):
            if not path.exists():
                write_whole(path, secrets.token_bytes(KEY_BYTES), private=True)
    content = path.read_bytes()
    if len(content) != KEY_BYTES:
        raise OSError(f"{path} holds {len(content)} bytes and must hold {KEY_BYTES}; delete it")
    if os.name == "posix" and (path.stat().st_uid != os.geteuid() or path.stat().st_mode & 0o077):
        raise OSError(f"{path} must belong to this user and be closed to others (mode 600)")
    return content
