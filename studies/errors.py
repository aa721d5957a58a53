"""The errors a user meets: one or two clear lines and the exit status of the command that ends with
them.
"""

from __future__ import annotations

import errno

# a full disk, a quota, a limit on file sizes
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


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
