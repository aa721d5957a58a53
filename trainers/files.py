"""Files written whole or not at all: the one way in which the packages write a file that another
process, or a later run, reads.

The content goes to a file beside the path, reaches the disk (fsync), and only then takes the name
(`os.replace`). A process that is killed meanwhile leaves a file whose name ends in `PARTIAL`, which
no reader looks at; `partial_files` finds them. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
PARTIAL = ".part"  # ends the names of files that are being written


def require_local(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for the address of a remote store (`s3://...`, or what `Path` makes of it),
    which would be taken for a folder of that name.
    """
    if _ADDRESS.match(text := os.fspath(path)) and not os.path.lexists(text):
        raise ValueError(
            f"{text} is the address of a remote store; files are read from and written to a file "
            "system: give a local path, copy the files here first, or mount the store"
        )


def write_whole(
    path: Path,
    content: str | bytes | memoryview,
    *,
    private: bool = False,
    previous: Path | None = None,
) -> None:
    """Writes `content` (text as UTF-8) to `path`, in place of a file of that name.

    At every moment `path` is absent or whole. `private` files can be read and written by this user
    only (mode 0600); others get what the umask leaves of 0666. A file that is replaced goes on as
    `previous`, if that is given; then, at every moment, one of the two names is a whole file.
    Several processes may write the same path at once: the last one wins. Raises OSError, with
    nothing left of the new content, where it cannot be written.
    """
    if isinstance(content, str):
        content = content.encode("utf-8")
    # A name of its own for each writer; O_EXCL follows no link that lies there.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # what writes to a descriptor names no file
        raise


def require_writable(folder: Path) -> None:
    """Raises OSError where this account cannot write files into `folder`, which may be missing, and
    is then to be made in the nearest folder above it that there is. Nothing is left behind.
    """
    folder = folder.absolute()
    with suppress(FileNotFoundError):
        os.lstat(folder)  # a name that is too long, a file among the folders above
    place = folder
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    try:
        with tempfile.TemporaryFile(dir=place):  # without a name, where the file system can
            pass
    except OSError as error:
        error.filename = str(folder)
        raise


def read_whole(path: Path) -> bytes:
    """The content of a regular file. Raises OSError for any other: a pipe or a device that lies in
    a directory in place of a file could be read without end.
    """
    with open_whole(path) as file:
        return file.read()


def open_whole(path: Path) -> BinaryIO:
    """A regular file, open for reading. Raises OSError for any other, as `read_whole`."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def write_plain(path: Path, text: str) -> None:
    """Writes a short text to `path`, which a killed process may leave torn.

    Raises OSError, with nothing written, where a link, a pipe or a device lies there: whoever made
    the directory could have chosen what is written over.
    """
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        try:
            file.truncate()
            file.write(text.encode("utf-8"))
            file.flush()
        except OSError as error:
            error.filename = str(path)  # what writes to a descriptor names no file
            raise


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError where it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or mappings are nested too deeply") from None


def system_reason(error: BaseException) -> str:
    """Why the system refused, in its words, without its number and the file; else the error's
    text.
    """
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.strerror:
        return error.strerror
    return str(error)


def partial_files(folder: Path) -> list[Path]:
    """The files directly in `folder` that `write_whole` did not finish, sorted; a live process may
    be writing one of them, unless the caller knows that none does.
    """
    return sorted(path for path in folder.glob(f"*{PARTIAL}") if path.is_file())


def set_aside_odd(folder: Path, names: Iterable[str], *, links: bool = False) -> list[Path]:
    """Renames what lies in `folder` under one of these names of files and is none (a folder, a
    pipe, a link to nothing; with `links` any link), so that the file can be written, and returns
    the new places. Raises OSError.
    """
    moved = []
    for name in names:
        path = folder / name
        if os.path.lexists(path) and (not path.is_file() or (links and path.is_symlink())):
            os.rename(path, place := damaged_name(path))
            moved.append(place)
    return moved


def damaged_name(path: Path) -> Path:
    """A name beside `path`, for what was in its place, that nothing has yet."""
    place, copies = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(place):
        copies += 1
        place = path.with_name(f"{path.name}.damaged-{copies}")
    return place


def as_word(path: str | os.PathLike[str]) -> str:
    """The path as one word of a command that a message prints: quoted for a POSIX shell, and with
    `./` in front of a leading dash, which would begin an option. A name with line breaks, terminal
    commands or bytes that are no text stays one line, which a shell reads as it (`$'a\\012b'`).
    """
    text = os.fspath(path)
    word = f"./{text}" if text.startswith("-") else text
    return quote(word) if word.isprintable() else f"$'{''.join(map(_shown, word))}'"


def _shown(character: str) -> str:
    """A character inside `$'...'`."""
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))
