"""Any mapping of known keys to odd values is a study whose first trial trains, or is refused before
it in one message; nothing hangs.
"""

from __future__ import annotations

import copy
import signal
from collections import Counter
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from studies.config import dump, parse
from studies.errors import StudyError, StudyFileError
from studies.search.assignments import LeaveError
from studies.search.driver import SearchDriver
from studies.workers.launch import new_driver
from studies.workers.worker import run_trial
from studies.yaml_loader import write_yaml
from support.study_files import KEYS, SMALL, TOGETHER, VALUES, nested, plausible, sources

SECONDS = 60  # until a start that is not over counts as hanging: far more than any takes
LONGEST = 2000  # characters of a message
PLAUSIBLE = plausible()


@settings(
    max_examples=150,
    deadline=4000,  # milliseconds for one study file: far more than any takes
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4))
def test_odd_values_are_a_study_or_one_message(changes):
    text = write_yaml(nested(changes))
    try:
        study = parse(text, name="odd.yaml")
    except StudyFileError as error:
        lines = str(error).splitlines()
        assert lines and all(line.startswith("odd.yaml") for line in lines), error
        assert max(map(len, lines)) < LONGEST
        return
    assert parse(dump(study)) == study


@st.composite
def changes(draw) -> dict[tuple[str, ...], Any]:
    """A few keys with values that some study may have there, and now and then an odd one."""
    several = st.lists(st.sampled_from(list(PLAUSIBLE)), min_size=1, max_size=5, unique=True)
    made = {key: draw(PLAUSIBLE[key]) for key in draw(several)}
    if draw(st.booleans()):
        for key, values in draw(st.sampled_from(TOGETHER)).items():
            made[tuple(key.split("."))] = draw(st.sampled_from(values))
    if draw(st.integers(0, 5)) == 0:
        made[draw(st.sampled_from(KEYS))] = draw(VALUES)
    return made


class Report:
    """Tells the driver what the first trial reports, until that has trained an epoch of several."""

    def __init__(self, driver: SearchDriver, number: int) -> None:
        self._driver, self._number = driver, number

    def heartbeat(self, epoch: int) -> None:
        self._driver.heartbeat(self._number, epoch)
        if self._driver.study.training.epochs > 2:
            raise LeaveError

    def __call__(self, scores: Mapping[str, Any]) -> str:
        return self._driver.report(self._number, scores["epoch"], scores)


def begin(text: str, place: Path, *, probe: bool) -> str:
    """How the study file's start ends: `refused`, or `begun` when its first trial has trained."""
    try:
        driver = new_driver(parse(text, name="odd.yaml"), place, probe=probe)
    except (StudyError, ValueError, OSError) as error:
        assert not place.exists(), "a refused study leaves nothing behind"
        assert 0 < len(str(error)) < 4 * LONGEST and "object at 0x" not in str(error)
        return "refused"
    with driver:
        try:
            first = driver.next()
        except StudyError as error:
            assert "can be trained" in str(error)
            return "refused"
        assert first is not None, (driver.ended, driver.explanation)
        try:
            run_trial(driver.study, first, Report(driver, first.number))
        except LeaveError:
            driver.finish(first.number, "interrupted")
            return "begun"
        driver.finish(first.number, "complete")
    return "begun"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`data` sections of tiny data sets."""
    return sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def bounded():
    """Ends a test's code that is still running after a while, as a hang."""

    def hangs(*_: object) -> None:
        pytest.fail(f"not over after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    yield lambda: signal.alarm(SECONDS)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def begin_many(data, folder: Path, bounded, examples: int, piece: int) -> Counter[str]:
    """How the starts of that many study files ended; others with another piece."""
    endings: Counter[str] = Counter()
    places = map(str, count())  # a study file that is tried again begins in a place of its own

    @seed(piece)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(data), changes(), st.integers(0, 3))
    def each(source, made, probe):
        content = nested(made, {"data": copy.deepcopy(source), **copy.deepcopy(SMALL)})
        bounded()
        place = folder / next(places)
        endings[begin(write_yaml(content), place, probe=probe == 0)] += 1

    each()
    return endings


def test_what_validates_begins_or_is_refused(data, tmp_path, bounded):
    endings = begin_many(data, tmp_path, bounded, 20, 0)
    assert endings["begun"] >= 3 and endings["refused"] >= 3, endings


@pytest.mark.slow
@pytest.mark.parametrize("piece", range(1, 9))
def test_what_validates_begins_or_is_refused_at_length(data, tmp_path, bounded, piece):
    endings = begin_many(data, tmp_path, bounded, 250, piece)
    assert endings["begun"] > 80, endings


@settings(
    max_examples=150, deadline=2000, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(
    st.lists(
        st.sampled_from(
            [
                "data: ",
                "{name: digits}",
                "\n",
                "search: ",
                "[",
                "]",
                "{",
                "}",
                "? ",
                ": ",
                "- ",
                "&a ",
                "*a",
                "!!python/object:os.system ",
                "!!int ",
                "!!binary ",
                "<<: ",
                "|",
                ">",
                "'",
                '"',
                "#",
                "%YAML 9.9\n",
                "---\n",
                "...\n",
                "\t",
                "\x07",
                "\ufeff",
                "1e999",
                "2020-13-45",
                "~",
            ]
        ),
        max_size=25,
    )
)
def test_any_text_is_a_study_or_one_message(pieces):
    try:
        parse("".join(pieces), name="odd.yaml")
    except StudyFileError as error:
        assert str(error).startswith("odd.yaml")
