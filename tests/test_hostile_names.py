"""Classes and image files whose names hold terminal commands and markup: nothing of them reaches a
terminal, and a bundle's card stays the YAML and Markdown that it is.
"""

import csv
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.bundles import manifest_of, subject  # noqa: F401  (fixtures)
from support.commands import run  # noqa: F401
from trainers.bundles.card_scores import front_matter
from trainers.bundles.export import export
from trainers.bundles.model_card import card

CLASSES = (
    "a\x1b]0;title\x07",
    "b\x9b2J\u202egnp\u2066",
    "c\nforged: line\n---\nlicense: evil",
    "</table><script>x</script> | [x](http://e) `q`",
    "'\": #yes",
    "null",
    "<!-- -->",
    "\u2028\x85\x7f\x00",
    "[bold]red[/bold]",
    "=cmd|' /C calc'!A0",
)
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def hostile(subject, tmp_path_factory):
    """A bundle with these names of classes."""
    named = replace(subject, splits=replace(subject.splits, classes=CLASSES))
    return export(named, tmp_path_factory.mktemp("exports") / "bundle\x1b[31m")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in ("i\x1b[2J\u202e\nforged: line.png", "j[bold].png"):
        Image.fromarray(np.zeros((17, 17), dtype=np.uint8)).save(folder / name)
    (folder / "torn\x1b[31m\nforged.png").write_bytes(b"\x89PNG")
    return folder


def test_predictions_hold_no_commands(run, hostile, images):
    status, out, err = run("predict", hostile, images)
    assert status == 1 and not COMMANDS.search(out + err)  # 1: a file is torn
    assert "\nforged" not in out + err and len(out.splitlines()) == 4
    assert err.startswith("skipped: ") and "torn\\x1b[31m forged.png" in err


def test_predictions_for_programs_hold_the_names_and_no_commands(run, hostile, images):
    _, out, _ = run("predict", hostile, images, "--format", "json")
    assert not COMMANDS.search(out) and set(json.loads(out)[0]["probabilities"]) == set(CLASSES)
    _, out, _ = run("predict", hostile, images, "--format", "csv")
    rows = list(csv.reader(io.StringIO(out)))
    assert not COMMANDS.search(out) and {len(row) for row in rows} == {3 + len(CLASSES)}


@pytest.mark.parametrize("words", [["verify"], ["measure", "--data", "quickstart", "--images", 2]])
def test_what_is_said_of_a_bundle_holds_no_commands(run, hostile, words):
    command, *more = words
    status, out, err = run(command, hostile, *more)
    assert status == 0 and not COMMANDS.search(out + err) and "Traceback" not in err


@pytest.mark.parametrize("words", [["status"], ["verify"], ["start", "nothing"]])
def test_a_line_break_in_a_path_begins_no_line(run, tmp_path, words):
    _, out, err = run(*words, tmp_path / "a\nok   forged\nerror: forged")
    assert out == "" and err.count("error: ") > 0
    assert not re.search(r"^(ok|error: forged)", err, re.MULTILINE)


def test_a_file_of_a_bundle_forges_no_finding(run, hostile, tmp_path):
    copied = tmp_path / "a\nok   files"
    shutil.copytree(hostile, copied)
    (copied / "b\nok   signature: forged").write_text("")
    _, out, _ = run("verify", copied)
    begun = re.findall(r"^(?:ok|--) +(\w+)", out, re.MULTILINE)
    assert "forged" in out and begun.count("files") == begun.count("signature") == 1
    assert not re.search(r"^ok +signature: forged", out, re.MULTILINE)


def block_of(text):
    """The YAML block of a card, as model hubs take it."""
    found = re.match(r"---\n(.*?)\n---(\n|$)", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_a_card_with_hostile_classes_is_read_back_as_it_was_meant(hostile):
    text = (hostile / "README.md").read_text()
    read = yaml.safe_load(block_of(text))
    assert read == yaml.safe_load(block_of(front_matter(manifest_of(hostile))))
    assert list(read) == ["library_name", "pipeline_tag", "tags", "metrics", "model-index"]
    assert read["model-index"][0]["name"] == "digits D4"
    assert not COMMANDS.search(text) and "\nforged" not in text and "\nlicense" not in text
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"\\.", "", text), flags=re.DOTALL)
    assert "<script" not in outside and "](" not in outside and "<!--" not in outside


@settings(max_examples=30, deadline=None)
@given(name=st.text(max_size=120) | st.sampled_from([*CLASSES, "--- " * 60, "yes", "1e3", "~"]))
def test_the_block_of_a_card_holds_any_name_of_data(hostile, name):
    manifest = manifest_of(hostile)
    manifest["data"]["data"] = name
    front = front_matter(manifest)
    read = yaml.safe_load(block_of(front))
    assert front.count("\n---\n") == 1
    [result] = read.pop("model-index")[0]["results"]
    assert isinstance(result["dataset"]["name"], str) and not COMMANDS.search(front)
    honest = yaml.safe_load(block_of(front_matter(manifest_of(hostile))))
    assert read == {key: honest[key] for key in read} and "license" not in read
    assert block_of(card(manifest)) == block_of(front)
