"""C code of this package, compiled on the machine that runs it and kept in the cache; without a compiler there is none.

A file's name holds all that its content depends on (sources, compiler, flags, processor), so that machines may share a cache; it
appears by renaming, and may be deleted at any time. `EQUISEARCH_COMPILE=0` compiles and loads nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Optional

from filelock import FileLock

from trainers.cache import directory

log = logging.getLogger(__name__)

FLAGS = ("-O3", "-march=native", "-fno-tree-vectorize", "-std=gnu11", "-fPIC", "-shared")    # vectorised by hand: gcc's own attempts cost a third
OFF = ("0", "off", "no", "false")       # values of EQUISEARCH_COMPILE; any other leaves it on
PATIENCE = 120.0        # seconds for a compiler, which takes about 4


class NotCompiled(Exception):
    """Why there is no compiled code, in one sentence."""


@lru_cache(maxsize=None)
def compiler() -> Optional[tuple[str, ...]]:
    """The command of the C compiler: `$CC`, else `cc`, `gcc` or `clang` on the path; None without one."""
    for command in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        try:
            words = shlex.split(command)
        except ValueError:      # a quote that does not end
            continue
        if words and (path := shutil.which(words[0])):
            return path, *words[1:]
    return None


def load(source: Path) -> ctypes.CDLL:
    """The library made from a C file and the header of the same name, if there is one. Raises NotCompiled where it cannot be made or loaded."""
    asked = os.environ.get("EQUISEARCH_COMPILE", "1")
    if asked.strip().lower() in OFF:
        raise NotCompiled(f"EQUISEARCH_COMPILE={asked} turns it off")
    command = compiler()
    if command is None:
        raise NotCompiled("there is no C compiler; install gcc or clang, or name one in $CC")
    path = directory() / "compiled" / f"{source.stem}-{_key(source, command)}.so"
    if found := _opened(path):
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):      # others that start at once wait for the first
            if found := _opened(path):
                return found
            _compile(source, command, path)
        return ctypes.CDLL(str(path))
    except OSError as error:        # a cache that cannot be written, or from which nothing may be run
        log.info("compiled code cannot be kept in %s (%s)", path.parent, error)
    with tempfile.TemporaryDirectory() as folder:
        try:
            _compile(source, command, Path(folder) / path.name)
            return ctypes.CDLL(str(Path(folder) / path.name))
        except OSError as error:
            raise NotCompiled(f"what was compiled cannot be loaded: {error}") from None


def _key(source: Path, command: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for file in filter(Path.exists, (source, source.with_suffix(".h"))):
        digest.update(file.read_bytes())
    about = Path(command[0]).resolve().stat()
    digest.update(repr((command, about.st_size, about.st_mtime_ns, FLAGS, platform.machine(), _processor())).encode())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What tells processors apart whose native code differs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")))


def _opened(path: Path) -> Optional[ctypes.CDLL]:
    """The library in a file; None for one that is missing, torn, or neither of this user nor of root: what others put into a shared cache is not run."""
    try:
        if hasattr(os, "getuid") and path.stat().st_uid not in (os.getuid(), 0):
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _compile(source: Path, command: tuple[str, ...], path: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        done = subprocess.run([*command, *FLAGS, str(source), "-o", temporary], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=PATIENCE)
        if done.returncode:
            raise NotCompiled(f"{command[0]} could not compile {source.name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        os.replace(temporary, path)
    except subprocess.TimeoutExpired:
        raise NotCompiled(f"{command[0]} took more than {PATIENCE:.0f} s to compile {source.name}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
