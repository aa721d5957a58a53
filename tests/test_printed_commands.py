"""Commands that messages print can be pasted into a shell, whatever their paths are called."""

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from studies.errors import StudyError
from studies.journal.directory import read_study
from trainers.files import as_word

REPO = Path(__file__).parents[1]
ODD = ["two words", "it's", 'say "x"', "-dash", "--out", "a;b", "a$HOME`id`", "new*[x]", "é &"]
SAFE = {"as_word", "trial", "best", "quoted", "settings", "number", "seed", "name"}


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_one_word_of_a_command_and_no_option(name):
    (word,) = shlex.split(as_word(Path(name)))
    assert Path(word) == Path(name) and not word.startswith("-")


@pytest.mark.parametrize(
    "name", ["a\nforged", "\x1b[31m it's\\", "-\t\u202e\x9b2J", "caf\udce9 \x7f1"]
)
def test_a_name_with_line_breaks_or_terminal_commands_is_one_word_of_one_line(name):
    word = as_word(Path(name))
    assert word.isprintable()
    read = subprocess.run(["bash", "-c", f"printf %s {word}"], stdout=subprocess.PIPE, check=True)
    assert Path(os.fsdecode(read.stdout)) == Path(name)


@pytest.mark.parametrize("name", ODD)
def test_commands_in_messages_name_the_study(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (Path(name) / "trials" / "0").mkdir(parents=True)
    with pytest.raises(StudyError) as caught:
        read_study(Path(name))
    command = re.findall("`(equisearch (?:start|repair) .*)`", str(caught.value))[0]
    assert Path(shlex.split(command)[-1]) == Path(name)


def _parts(node: ast.JoinedStr):
    for part in node.values:
        if isinstance(part, ast.Constant):
            yield str(part.value)
        else:
            yield part.value  # type: ignore[union-attr]


def _unquoted(node: ast.JoinedStr) -> list[str]:
    """What stands in a printed command without being made one word."""
    text, found = "", []
    for part in _parts(node):
        if isinstance(part, str):
            text += part
            continue
        last = text.rfind("equisearch ")
        inside = last >= 0 and not re.search(r"[`|;)]|  ", text[last:])
        name = part.func if isinstance(part, ast.Call) else part
        if inside and getattr(name, "id", "") not in SAFE:
            found.append(ast.unparse(part))
        text += "X"
    return found


def test_every_path_in_a_printed_command_is_one_word():
    wrong = [
        f"{path.relative_to(REPO)}:{node.lineno}: {expression}"
        for package in ("studies", "trainers")
        for path in sorted((REPO / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr)
        for expression in _unquoted(node)
    ]
    assert not wrong, "write as_word(path):\n" + "\n".join(wrong)
