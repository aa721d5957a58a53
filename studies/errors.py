"""The errors a user meets: one or two clear lines and the exit status of the command that ends with
them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

# a full disk, a quota, a limit on file sizes
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


# in the words of torch, its libraries and the system, where no MemoryError is raised; the last two
# are those of Python when it cannot even make one
NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "can't start new thread",
    "failed to map segment",
    "returned null without setting an exception",
    "error return without exception set",
)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and what was being handled when it was raised, back to the first
    one.
    """
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and not any(following is one for one in seen):
        yield following
        seen.append(following)
        hidden = following.__suppress_context__
        following = following.__cause__ or (None if hidden else following.__context__)


def lacks_space(error: BaseException) -> bool:
    """Whether a full disk, a quota or a limit on file sizes is behind the error."""
    return any(
        (isinstance(one, OSError) and one.errno in NO_SPACE)
        or "No space left on device" in str(one)
        for one in causes(error)
    )


def lacks_memory(error: BaseException) -> bool:
    """Whether memory that could not be had, of the machine or of a GPU, is behind the error."""
    # torch.OutOfMemoryError by name: this module does not import torch
    return any(
        isinstance(one, MemoryError)
        or type(one).__name__ == "OutOfMemoryError"
        or any(words in str(one).lower() for words in NO_MEMORY)
        for one in causes(error)
    )


class StudyError(Exception):
    """Something a user can repair: the message says what was given, what must hold, and
    what to do.
    """

    exit_status = 1


class StudyFileError(StudyError, ValueError):
    """A study file cannot be used; the message names the file, the line and the key, and what is
    allowed there.
    """


class LockedError(StudyError):
    """Another process drives this study; the message names its process id."""

    exit_status = 3


class ExistsError(StudyError):
    """The directory already holds a study."""

    exit_status = 3


class UntrustedError(StudyError):
    """A study directory that this user did not write would run programs; the message names what
    does, and `--trust`.
    """


class DamagedError(StudyError, ValueError):
    """The journal holds a line that is not a record; the message names it."""


class JournalWarning(UserWarning):
    """What a command that only looks leaves out, because it is not a record of this version."""


class TooManyFailuresError(StudyError):
    """Several trials in a row failed; the message ends with the last one's error."""

    exit_status = 4


class InterruptedStudyError(StudyError):
    """A signal ended the command; the message says what is kept."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


class ScoresError(ValueError):
    """A trial reported scores that cannot be compared (missing or not finite); this trial fails,
    the study goes on.
    """
