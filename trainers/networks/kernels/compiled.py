"""C code of this package, compiled on the machine that runs it and kept in the cache; without a
compiler there is none.

A file's name holds all that its content depends on (sources, compiler, flags, processor), so that
machines may share a cache; it appears by renaming, and may be deleted at any time. The compiler
writes to a private folder, from which this process loads; from the cache it loads the descriptor of
a file that no other user can have written, and that says it is what its name says (`KEY`).
`EQUISEARCH_COMPILE=0` compiles and loads nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from trainers.cache import acquire, directory, make_folder, open_own, say_once
from trainers.files import system_reason, write_whole

# vectorised by hand: gcc's own attempts cost a third
FLAGS = ("-O3", "-march=native", "-fno-tree-vectorize", "-std=gnu11", "-fPIC", "-shared")
OFF = ("0", "off", "no", "false")  # values of EQUISEARCH_COMPILE; any other leaves it on
TIMEOUT = 120.0  # seconds for a compiler, which takes about 4
COMPILER_WAIT = TIMEOUT + 10  # seconds for another process that compiles the same
KEY = "equisearch_key"  # the symbol of each library that holds its file's name, without the ending
DESCRIPTORS = Path("/proc/self/fd")  # where Linux opens what a descriptor stands for


class NotCompiledError(Exception):
    """There is no compiled code; the message says why, in one sentence."""


@cache
def compiler() -> tuple[str, ...] | None:
    """The command of the C compiler: `$CC`, else `cc`, `gcc` or `clang` on the path; None without
    one.
    """
    for command in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        try:
            words = shlex.split(command)
        except ValueError:  # a quote that does not end
            continue
        if words and (path := shutil.which(words[0])):
            return path, *words[1:]
    return None


def load_library(source: Path) -> ctypes.CDLL:
    """The library compiled from a C file and the header of the same name, if there is one.

    Waits up to `COMPILER_WAIT` seconds for another process that compiles the same. Raises
    NotCompiledError where it cannot be compiled or loaded.
    """
    choice = os.environ.get("EQUISEARCH_COMPILE", "1")
    if choice.strip().lower() in OFF:
        raise NotCompiledError(f"EQUISEARCH_COMPILE={choice} turns it off")
    command = compiler()
    if command is None:
        raise NotCompiledError("there is no C compiler; install gcc or clang, or name one in $CC")
    name = f"{source.stem}-{_key(source, command)}.so"
    try:
        path = directory() / "compiled" / name
        if library := _cached(path):
            return library
        make_folder(path.parent)
        lock = acquire(path, COMPILER_WAIT)  # others that start at once wait for the first
    except OSError as error:
        say_once(
            "compiled code is not kept, because the cache cannot be used "
            f"({system_reason(error)}); every process compiles it again"
        )
        return _compiled(source, command, name, None)
    try:
        return _cached(path) or _compiled(source, command, name, path)
    finally:
        lock.release()


def _key(source: Path, command: tuple[str, ...]) -> str:
    """A hash of all that the compiled code depends on, hexadecimal."""
    digest = hashlib.sha256()
    for file in filter(Path.exists, (source, source.with_suffix(".h"))):
        digest.update(file.read_bytes())
    about = Path(command[0]).resolve().stat()
    digest.update(
        repr(
            (command, about.st_size, about.st_mtime_ns, FLAGS, platform.machine(), _processor())
        ).encode()
    )
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What tells processors apart whose native code differs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        line
        for line in lines
        if line.startswith(("vendor_id", "cpu family", "model", "flags", "Features", "CPU part"))
    )


def _cached(path: Path) -> ctypes.CDLL | None:
    """The library in a cached file; None for one that is missing, torn, another than its name says,
    or not ours (`open_own`).
    """
    file = open_own(path)
    if file is None:
        return None
    with file, suppress(OSError):
        library = _loaded(file)
        if _named(library) == path.stem:
            return library
    return None


def _loaded(file: BinaryIO) -> ctypes.CDLL:
    """The library in an open file, whatever its name stands for by now. Raises OSError."""
    if DESCRIPTORS.is_dir():
        # never closed: a later file of that number would be taken for this one
        descriptor = os.dup(file.fileno())
        try:
            return ctypes.CDLL(str(DESCRIPTORS / str(descriptor)))
        except OSError:
            os.close(descriptor)
            raise
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "library.so"
        copy.write_bytes(file.read())
        return ctypes.CDLL(str(copy))


def _named(library: ctypes.CDLL) -> str:
    """The name that `_compile` gave a library; '' for one without."""
    try:
        return (ctypes.c_char_p.in_dll(library, KEY).value or b"").decode()
    except (ValueError, AttributeError, UnicodeDecodeError):
        return ""


def _compiled(source: Path, command: tuple[str, ...], name: str, keep: Path | None) -> ctypes.CDLL:
    """The library, compiled and loaded in a private folder, with a copy in the file `keep`. Raises
    NotCompiledError.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / name
            _compile(source, command, built)
            if keep is not None:
                _keep(built.read_bytes(), keep)
            try:
                return ctypes.CDLL(str(built))
            except OSError:  # nothing may be run from the temporary folder; perhaps from the cache
                if keep is None or (library := _cached(keep)) is None:
                    raise
                return library
    except OSError as error:
        raise NotCompiledError(f"what was compiled cannot be loaded: {error}") from None


def _compile(source: Path, command: tuple[str, ...], path: Path) -> None:
    """Compiles into `path`, whose folder must be private: compilers open their output by name."""
    key = path.with_suffix(".key.c")
    key.write_text(f'const char *const {KEY} = "{path.stem}";\n')
    try:
        done = subprocess.run(
            [*command, *FLAGS, str(source), str(key), "-o", str(path)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise NotCompiledError(
            f"{command[0]} took more than {TIMEOUT:.0f} s to compile {source.name}"
        ) from None
    if done.returncode:
        raise NotCompiledError(
            f"{command[0]} could not compile {source.name}: "
            f"{(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )


def _keep(content: bytes, path: Path) -> None:
    """Writes the cached file at once or not at all, for this user only; where it cannot, it says so
    once.
    """
    try:
        write_whole(path, content, private=True)
    except OSError as error:
        say_once(
            f"compiled code cannot be kept in {path.parent} ({error.strerror}); every process "
            "compiles it again. "
            "Set EQUISEARCH_CACHE to a folder that only you can write"
        )
