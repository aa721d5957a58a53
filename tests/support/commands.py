"""Commands as the console script runs them, in this process."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from studies.cli import main as cli


@dataclass
class Result:
    """How a command ended: its exit status, and what it wrote."""

    status: int
    out: str
    err: str

    def __iter__(self):
        return iter((self.status, self.out, self.err))

    @property
    def json(self) -> Any:
        """What it wrote, read as JSON."""
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process, as the console script does."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["equisearch", *map(str, words)])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
        return Result(int(status), *capsys.readouterr())

    return call
