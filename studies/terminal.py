"""What reaches a terminal or pipe: no control characters from files, characters that it can show,
and no error where it is gone.

`guarded_streams` puts this between the whole program and its streams, so that every print, warning
and traceback passes through it.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# C0 but newline and tab, DEL, C1, marks and overrides of direction, line and paragraph separators
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
LONGEST_LINE = 2000  # characters of a message's line that are shown
_BREAKS = re.compile("[\n\t]")
LOOKALIKE = "equisearch.lookalike"  # name of an error handler for encoders
_SIMILAR = {
    "█": "#",
    "░": ".",
    "─": "-",
    "│": "|",
    "⋮": ":",
    "✗": "!",
    "±": "+-",
    "°": " deg",
    "×": "x",
    "→": "->",
    "…": "...",
    "–": "-",
    "—": "-",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "≤": "<=",
    "≥": ">=",
}


def plain_text(text: Any) -> str:
    """The text with control characters spelled out (`\\x1b`), which a terminal would obey; newlines
    and tabs stay.
    """
    return _CONTROL.sub(_spelled, str(text))


def one_line(text: Any) -> str:
    """The same without newlines and tabs, for a value that has its place in a line."""
    return _BREAKS.sub(" ", plain_text(text))


def continued(text: str) -> str:
    """A message with its later lines indented: a line break in a file's name begins no line that
    looks like one of ours. Of a line without end, such as one that quotes what was given, beginning
    and end are shown.
    """
    first, *rest = map(_shortened, text.split("\n"))
    return "\n".join([first, *(line if line[:1] in ("", " ") else f"  {line}" for line in rest)])


def _shortened(line: str) -> str:
    left_out = len(line) - LONGEST_LINE
    if left_out <= 0:
        return line
    half = LONGEST_LINE // 2
    return f"{line[:half]} [{left_out:,} characters left out] {line[-half:]}"


def encodable(text: str, stream: Any) -> str:
    """The text in characters that `stream` can encode, for laying it out: others give way to
    similar ones.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, LOOKALIKE).decode(encoding)


def is_terminal(stream: Any) -> bool:
    """Whether a person looks at the stream; False for one that is closed."""
    try:
        return bool(stream is not None and stream.isatty())
    except ValueError:
        return False


class Lasting:
    """A text stream that raises nothing when its reader is gone or it is closed: from then on it
    writes nowhere.

    With `forgiving`, no OSError ends a write: for messages. Without, a full disk still does:
    results must not be lost silently.
    """

    def __init__(self, stream: Any, *, forgiving: bool) -> None:
        self._stream, self._forgiving, self._gone = stream, forgiving, stream is None

    def write(self, text: str) -> int:
        """Writes the text, or nothing; returns its length."""
        if not isinstance(text, str):  # by which libraries tell streams of bytes
            raise TypeError(f"this stream takes text, got {type(text).__name__}")
        self._attempt(lambda: self._encoded(text))
        return len(text)

    def flush(self) -> None:
        """Flushes what was written."""
        self._attempt(lambda: self._stream.flush())

    def writelines(self, lines: Any) -> None:
        """Writes each text."""
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """As `is_terminal`."""
        return is_terminal(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _encoded(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(encodable(text, self._stream))

    def _attempt(self, action: Any) -> None:
        if self._gone:
            return
        try:
            action()
        except (OSError, ValueError) as error:
            if (
                isinstance(error, OSError)
                and not isinstance(error, BrokenPipeError)
                and not self._forgiving
            ):
                raise
            self._gone = True
            _discard(self._stream)


class PlainStream(Lasting):
    """The same, and control characters are spelled out. Rich, which lays out with some of its own,
    writes past that.
    """

    def __init__(self, stream: Any, *, forgiving: bool) -> None:
        super().__init__(stream, forgiving=forgiving)
        self.rich_proxied_file = Lasting(stream, forgiving=forgiving)

    def write(self, text: str) -> int:
        """Writes the text without control characters, or nothing; returns its length."""
        return super().write(plain_text(text) if isinstance(text, str) else text)


def styled(stream: Any, *, forgiving: bool = False) -> Any:
    """The stream for text that this program laid out with styles, from parts that are plain."""
    return getattr(stream, "rich_proxied_file", None) or Lasting(stream, forgiving=forgiving)


def lasting(stream: Any) -> Any:
    """The stream for messages: plain, and without errors."""
    return stream if isinstance(stream, PlainStream) else PlainStream(stream, forgiving=True)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Within the block, stdout and stderr are `PlainStream`; closed ones write nowhere. They are
    flushed at the end.
    """
    _open_descriptors()
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=LOOKALIKE)
        setattr(sys, name, PlainStream(stream, forgiving=name == "stderr"))
    try:
        yield
    finally:
        ours = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for stream in ours:
            try:
                stream.flush()
            except OSError:
                _discard(stream)


def _open_descriptors() -> None:
    """Gives 0, 1 and 2 to nothing where they are closed, or the next file that is opened, a
    journal, would be printed into.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _discard(stream: Any) -> None:
    """What the stream still holds, and what else writes to its descriptor, goes nowhere: the
    interpreter flushes it at its end.
    """
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _similar(error: UnicodeError) -> tuple[str, int]:
    """Replaces what an encoding lacks by similar characters of ASCII, else by question marks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ascii(c) for c in error.object[error.start : error.end]), error.end


def _ascii(character: str) -> str:
    bare = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _SIMILAR.get(character) or bare or "?"


codecs.register_error(LOOKALIKE, _similar)
