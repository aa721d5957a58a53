"""The command line: `equisearch COMMAND`. Results go to stdout, progress to stderr, errors are one line and an exit status.

Exit status: 0 fine, 1 our error, 2 usage, 3 locked or exists, 4 too many failures, 130 and 143 signals. What a command needs is
imported inside it, so that commands that only read answer at once.
"""

from __future__ import annotations

import os
import sys
import traceback

from studies import commands_search, commands_models, commands_tables, commands_setup  # noqa: F401, I001  (registering; in the order of the help)
from studies.app import app


def main() -> None:
    """Runs the command line; the console script `equisearch`."""
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")       # one thread a process: more lose 3 to 5 times where processes run side by side
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        from studies.errors import InterruptedStudyError, StudyError

        known = isinstance(error, (StudyError, ValueError, OSError))
        text = str(error) if known and str(error) else f"{type(error).__name__}: {error} (this is a fault of the program; --debug shows where)"
        print(text if isinstance(error, InterruptedStudyError) else f"error: {text}", file=sys.stderr)
        sys.exit(error.exit_status if isinstance(error, StudyError) else 1)


if __name__ == "__main__":
    main()
