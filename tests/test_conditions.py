"""Conditions on trials: what they mean, and one clear message for each mistake."""

import pytest

from studies.evidence.conditions import Condition, ConditionError
from studies.evidence.selection import COLUMN_KINDS, COLUMNS, filtered

ROW = {
    "params": 24_000,
    "accuracy": 0.96,
    "exact": True,
    "group": "C4",
    "learning_rate": None,
    "architecture": "28px: 10k3@C4, 10k3 max2/2",
    "input_size": "28",
}


@pytest.mark.parametrize(
    "text, holds",
    [
        ("params < 50000 and exact", True),
        ("params < 20k", False),
        ("params<=24000", True),
        ("accuracy >= 95%", True),
        ("accuracy > 96 %", None),  # the unit belongs to the number
        ("not exact or group == D4", False),
        ("group = C4 and (exact = false or params > 1k)", True),
        ("group != 'C4'", False),
        ("learning_rate < 1", False),  # it has none
        ("not learning_rate < 1", True),
        ("learning_rate != 3", False),
        ("architecture ~ 'max2/2'", True),
        ("input_size == 28", True),
        ("exact == true", True),
        ("exact and exact and not (not exact)", True),
        ("params > 1e4 and params < .1M", True),
        # `and` binds before `or`
        ("exact or exact and params < 1", True),
        ("(exact or exact) and params < 1", False),
    ],
)
def test_a_condition_means_what_it_says(text, holds):
    if holds is None:
        with pytest.raises(ConditionError):
            Condition.parse(text)
    else:
        assert Condition.parse(text)(ROW) is holds


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "a column must stand here"),
        ("params <", "a number or text must stand here"),
        ("params < 5 exact", "'exact' follows a complete condition"),
        ("(exact", "not closed"),
        ("params < many", "compares numbers; got the text many"),
        ("params < 5; x", "';' means nothing here"),
        ("__import__('os')", "follows a complete condition"),
        ("(" * 60 + "exact", "nested more than 50"),
        ("5 < params", "a column must stand here"),
    ],
)
def test_a_mistake_gets_one_message(text, says):
    with pytest.raises(ConditionError, match="(?s)" + says.replace("(", r"\(")):
        Condition.parse(text)


def test_unknown_columns_are_named_with_similar_ones():
    condition = Condition.parse("exact and parms < 5")
    with pytest.raises(
        ConditionError, match=">>>parms.*no column 'parms'; similar ones are params"
    ):
        condition.require(tuple(ROW))
    with pytest.raises(ConditionError, match=r"share from 0 to 1.*write 0.95 or 95%"):
        Condition.parse("accuracy > 95").require(tuple(ROW), ("accuracy",))
    assert Condition.parse("accuracy > 95%").require(tuple(ROW), ("accuracy",))


@pytest.mark.parametrize(
    "text, says",
    [
        ("group > 3", "group is text, which cannot be compared by > with 3; write group == TEXT"),
        ("not (head <= 2)", "head is text"),
        ("group == 4", "group is text"),
        ("exact > 0", "exact is true or false; write exact"),
        ("exact == yes", "exact is true or false"),
        ("params == many", "params is a number, which cannot be compared by == with 'many'"),
        ("params ~ 5", "params is a number"),
    ],
)
def test_what_no_trial_can_meet_is_refused(text, says):
    with pytest.raises(ConditionError, match=says.replace("(", r"\(")):
        filtered([], text)


def test_every_column_has_a_kind_and_takes_what_suits_it():
    assert set(COLUMN_KINDS) == set(COLUMNS)
    good = ("group == C4", "head ~ max", "exact", "exact != false", "input_size > 16", "params < 5")
    for text in (*good, "input_size == '48x64'"):
        assert filtered([], text) == []
