"""Models to audit, by name."""

from __future__ import annotations

import re

# no architecture in text form is like this: those begin with a number
_FUNCTION = re.compile(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")


def names_model(text: str) -> bool:
    """Whether `text` means a model: module:function or file.py:function."""
    return _FUNCTION.fullmatch(text.strip()) is not None
