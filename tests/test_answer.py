"""The sentences of the answer, from records made by hand: each says what its numbers say."""

import re

import pytest

from searchspace.recipe import Candidate
from studies.evidence.intervals import Evidence
from studies.journal.trial import TrialRecord
from studies.results.report.answer import answer, constraint_text
from support import trivial

EXACT, PLAIN = "28px: 10k3@C4, 10k3 max2/2, 10k4p0", "28px: 20k3, 20k3 max2/2, 20k4p0"
OTHER = "29px: 20k3, 20k3 max2/2, 20k4p0"


def record(number, accuracy, symmetry, text=EXACT, *, macs=1000, surviving=("e",), **more):
    scores = {"epoch": 9, "accuracy": accuracy, "symmetry_accuracy": symmetry, "num_images": 10_000}
    attributes = {
        "rung 9": {"scores": scores, "decision": "continue"},
        "architecture": text,
        "canonical": str(number),
        "seed": 0,
        "params": 500,
        "macs": macs,
        "surviving": list(surviving),
        **more,
    }
    return TrialRecord(number, "complete", (accuracy, symmetry), attributes)


def said(*records, trials=None):
    study = trivial.study(search__trials=len(records) if trials is None else trials)
    return answer(study, records, Evidence(), {})


def test_each_rival_is_compared_once_and_the_most_accurate_first():
    best = record(0, 0.90, 0.90, macs=3000)
    accurate, plain, worse = (
        record(1, 0.95, 0.10, OTHER, macs=1000),
        record(2, 0.80, 0.20, PLAIN),
        record(3, 0.70, 0.20, PLAIN),
    )
    cost = " ".join(said(best, accurate, plain, worse).cost)
    assert re.search(r"Against the most accurate trial \(trial 1\): \D?5\.0", cost)
    assert "the most accurate plain network" not in cost  # it is the one above
    assert "3 times those of trial 1" in cost
    steerable = record(1, 0.95, 0.10, EXACT.replace("28px", "29px"))
    cost = " ".join(said(best, steerable, worse, plain).cost)
    assert "Against the most accurate plain network (trial 2)" in cost
    alone = " ".join(said(best, plain).cost)
    assert "No other trial of the search is more accurate" in alone and "times those" not in alone


@pytest.mark.parametrize(
    "others, sentence",
    [
        (0, None),
        (1, "The other member of the front differs from it in an objective (95 %)."),
        (2, "The other 2 members of the front differ from it in at least one objective (95 %)."),
    ],
)
def test_members_of_the_front_that_differ_are_counted(others, sentence):
    rest = [record(1, 0.99, 0.10), record(2, 0.10, 0.99)][:others]
    evidence = said(record(0, 0.80, 0.80), *rest).evidence
    differing = [text for text in evidence if "differ" in text]
    assert differing == ([sentence] if sentence else [])


@pytest.mark.parametrize(
    "ties, said_of_them",
    [
        (1, "Trial 1 of the front"),
        (6, "Trials 1, 2, 3, 4, 5 and 6 of the front"),
        (8, "Trials 1, 2, 3, 4, 5 and 6 and 2 more of the front"),
    ],
)
def test_ties_are_named_up_to_six(ties, said_of_them):
    front = [record(n, 0.9 - n / 10_000, 0.9 + n / 10_000) for n in range(ties + 1)]
    found = answer(trivial.study(search__trials=ties + 1), front, Evidence(images=50), {})
    tied = next(text for text in found.evidence if "cannot be told" in text)
    named = tied.split(" of the front")[0]
    assert (" more" in named) == (" more" in said_of_them)
    assert named.startswith("Trial " if ties == 1 else "Trials ")
    assert len(re.findall(r"\d+", named)) == len(re.findall(r"\d+", said_of_them))


def test_a_study_that_has_ended_has_no_warning_that_the_answer_may_change():
    both = record(0, 0.9, 0.8), record(1, 0.8, 0.9)
    warns = [
        any("the answer may change" in t for t in said(*both, trials=n).cautions) for n in (1, 2, 3)
    ]
    assert warns == [False, False, True]


@pytest.mark.parametrize(
    "text, surviving, built",
    [
        (PLAIN, ("e",), "no built-in equivariance (a plain network)"),
        (PLAIN, (), "no built-in equivariance (a plain network)"),
        (EXACT, ("e",), "partial equivariance (C4 by stages, no element of C4 but the identity"),
        (
            EXACT,
            ("e", "r180"),
            "partial equivariance (C4 by stages, 2 of the 4 elements of C4 kept",
        ),
    ],
)
def test_a_constraint_is_said_by_what_survives_of_it(text, surviving, built):
    chosen = record(0, 0.9, 0.9, text, surviving=surviving)
    sentence = constraint_text(Candidate.parse(text), chosen, trivial.study())
    assert sentence.startswith(built)
