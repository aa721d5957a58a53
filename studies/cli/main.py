"""The command line: `equisearch COMMAND`. Results go to stdout, progress to stderr, errors are one
line and an exit status.

Exit status: 0 fine, 1 our error, 2 usage, 3 locked or exists, 4 too many failures, 130 and 143
signals. What a command needs is imported inside it, so that commands that only read answer at once.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Any

from studies.cli import (  # noqa: F401  (they register their commands)
    bundles,
    check,
    compare,
    models,
    search,
    setup,
    soften,
    tables,
)
from studies.cli.app import app as app
from studies.cli.app import application
from studies.terminal import continued, guarded_streams, one_line


def main() -> None:
    """Runs the command line; the console script `equisearch`."""
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    # one thread a process: more lose 3 to 5 times where processes run side by side
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # pydantic would search all installed packages for plugins
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if not debug:
        warnings.formatwarning = _warning
    with guarded_streams():
        status = _status(debug)
    sys.exit(status)


def _warning(message: Warning | str, *where: object, **options: object) -> str:
    """A line for a warning: a user is not helped by the place in the program."""
    return f"warning: {one_line(message)}\n"


def _status(debug: bool) -> int | str | None:
    """Runs the command in sys.argv and returns its exit status; errors are explained on stderr."""
    try:
        status = application(sys.argv[1:])(prog_name="equisearch", standalone_mode=False)
        sys.stdout.flush()
        return status
    except SystemExit as ending:
        return ending.code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if type(error).__name__ == "Abort":  # typer's name for a KeyboardInterrupt
            return 130
        if hasattr(error, "format_message"):
            return _usage(error)
        if debug:
            traceback.print_exc()
        from studies.errors import InterruptedStudyError, StudyError

        ours = isinstance(error, (StudyError, ValueError, OSError))
        text = _lacking(error) or (
            _said(error)
            if ours and str(error)
            else f"{type(error).__name__}: {error} (this is a fault of the program; --debug "
            "shows where)"
        )
        said = text if isinstance(error, InterruptedStudyError) else f"error: {text}"
        print(continued(said), file=sys.stderr)
        return error.exit_status if isinstance(error, StudyError) else 1


def _lacking(error: Exception) -> str | None:
    """What to do where space or memory was lacking, whatever error came of it; None for others, and
    for ours, which say it themselves.
    """
    from studies.errors import NO_SPACE, StudyError, causes, lacks_memory, lacks_space

    said_itself = isinstance(error, OSError) and error.errno is None and str(error)
    if isinstance(error, StudyError) or said_itself:
        return None
    first = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if lacks_space(error):
        system = next(
            (e for e in causes(error) if isinstance(e, OSError) and e.errno in NO_SPACE), None
        )
        name, why = (system.filename, system.strerror) if system is not None else (None, None)
        return (
            f"no space is left for {name or 'a file'} ({why or first}): free some space, or raise "
            "the limit on file sizes, then give the same command again"
        )
    if lacks_memory(error):
        return (
            f"memory did not suffice ({first}): end other programs, or take smaller batches "
            "(training.batch_size), inputs (space.input_size) or networks, then give the same "
            "command again"
        )
    return None


def _said(error: Exception) -> str:
    """The error's words; of the system's errors which file, why, and what to look at."""
    from studies.errors import READ_ONLY, TOO_MANY_OPEN

    if isinstance(error, OSError) and error.errno in TOO_MANY_OPEN:
        return (
            f"{error.strerror} (at {error.filename or 'a connection'}): raise the limit on open "
            "files (ulimit -n 4096), or end programs that hold many, then give the same command "
            "again"
        )
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.strerror:
        if error.filename is None:
            return f"the system refused ({error.strerror}); --debug shows where"
        if error.errno in READ_ONLY:
            return (
                f"{error.filename} cannot be used ({error.strerror}): use an account that may "
                "read and write it, or a copy of the directory that it is in"
            )
        return (
            f"{error.filename} cannot be used ({error.strerror}); look whether it is a file or "
            "folder as it should be, and whether this account may read and write it"
        )
    return str(error)


def _usage(error: Any) -> int:
    """Prints a usage error in one line; the help where no command is given. Returns the exit
    status.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "equisearch"
        message = error.format_message().removesuffix(".").replace("Value error, ", "")
        message = message.replace(": Input should be", f"{_given(error)}: it must be")
        print(continued(f"error: {message} (see `{command} --help`)"), file=sys.stderr)
    return error.exit_code


def _given(error: Any) -> str:
    """What the command line gives an option whose value is refused, in brackets; '' for others."""
    names = tuple(getattr(getattr(error, "param", None), "opts", ()))
    for word, following in zip(sys.argv, [*sys.argv[1:], ""]):
        name, equals, value = word.partition("=")
        if name in names:
            return f" ({value if equals else following})"
    return ""


if __name__ == "__main__":
    main()
