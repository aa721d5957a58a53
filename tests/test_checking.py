"""What `equisearch check` rests on: stable keys, right answers on published networks, and an answer
without torch.
"""

import json
import subprocess
import sys

import pytest

from searchspace.architecture import Architecture
from searchspace.exactness import verdict
from searchspace.published import PUBLISHED
from studies.results.check import check, named_candidate

KEYS = {
    "architecture",
    "preset",
    "family",
    "orbit",
    "coordinates",
    "savings",
    "streams",
    "group",
    "exact",
    "grid_exact",
    "surviving",
    "surviving_elements",
    "invariant_elements",
    "near_elements",
    "relaxations",
    "stages",
    "breaks",
    "exact_sizes",
    "unshifted_sizes",
    "without_effect",
    "repairs",
    "breaking",
    "channels",
    "classes",
    "params",
    "expanded_params",
    "macs",
}
P4 = "{}px: 10k3@C4, 10k3 max2/2, 10k3, 10k3, 10k3, 10k3, 10k4p0"


def test_an_architecture_has_one_channel_and_ten_classes_unless_it_is_given_more():
    text = P4.format(28)
    plain, given, more = check(text), check(text, channels=1, classes=10), check(text, channels=3)
    assert plain.as_dict() == given.as_dict()
    assert more.as_dict()["params"] > plain.as_dict()["params"]


def test_the_answer_for_programs_has_stable_keys_and_survives_json():
    found = check(P4.format(29)).as_dict()
    assert set(found) == KEYS and json.loads(json.dumps(found, allow_nan=False)) == found
    assert (
        found["group"] == "C4"
        and found["exact"] is False
        and found["surviving"] == "C1"
        and found["surviving_elements"] == ["e"]
    )
    assert found["exact_sizes"][:4] == [28, 30, 26, 32] and found["params"] == 24740
    assert [s["layer"] for s in found["stages"]][:4] == ["conv1", "conv1", "max2/2", "conv1"]
    assert found["stages"][2] == {
        "stage": 2,
        "layer": "max2/2",
        "group": "C4",
        "size": 14,
        "remainder": 1,
        "surviving_elements": ["e"],
    }
    assert found["stages"][0]["remainder"] == 0 and found["stages"][0]["surviving_elements"] == [
        "e",
        "r90",
        "r180",
        "r270",
    ]
    assert {
        "element": "r90",
        "reason": "shift",
        "stage": 2,
        "layer": "max2/2",
        "axis": "width",
        "remainder": 1,
    } in found["breaks"]
    assert {p["kind"] for p in found["repairs"]} == {"size", "entry", "layout"} and not found[
        "breaking"
    ]


def test_an_exact_network_is_told_how_to_break_it():
    found = check(P4.format(28)).as_dict()
    assert (
        found["exact"]
        and found["surviving"] == "C4"
        and not found["repairs"]
        and not found["breaks"]
        and found["breaking"]
    )
    assert "Exact under C4" in check(P4.format(28)).text()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_published_network_has_an_answer(name):
    found = check(name)
    facts = found.as_dict()
    assert (
        facts["preset"] == name
        and facts["channels"] == PUBLISHED[name].channels
        and facts["classes"] == PUBLISHED[name].classes
    )
    assert all(verdict(Architecture.parse(p["architecture"])).grid_exact for p in facts["repairs"])
    assert PUBLISHED[name].source in found.text() and found.text(ascii_only=True).isascii()


def test_a_plain_network_is_said_to_have_no_symmetry_and_what_its_layout_would_keep():
    exact, broken = check("z2cnn"), check("z2cnn", size=29)
    assert (
        exact.as_dict()["exact"]
        and exact.as_dict()["surviving"] == "C1"
        and exact.as_dict()["exact_sizes"] == []
    )
    assert "No symmetry is built in" in exact.text() and "would keep all of D4" in exact.text()
    assert "would keep D1 (e mr90) of D4; all of it at 28, 30" in broken.text()
    assert (
        not check("z2cnn", "C4").as_dict()["exact"]
        and "not built in" in check("z2cnn", "C4").text()
    )


def test_images_that_are_not_square_have_pairs():
    facts = check("29x28px: 4k3@D4 max2/2").as_dict()
    assert (
        facts["stages"][1]["size"] == 14
        and facts["stages"][0]["size"] == [29, 28]
        and facts["stages"][1]["remainder"] == [1, 0]
    )
    assert [28, 28] in facts["exact_sizes"] and facts["surviving_elements"] == [
        "e",
        "r90",
        "m",
        "mr90",
    ]


def test_elements_off_the_grid_are_left_to_measurement():
    found = check("e2sfcnn")
    assert (
        found.as_dict()["grid_exact"]
        and not found.as_dict()["exact"]
        and found.as_dict()["surviving"] == "C4"
    )
    assert "never exact, measure them" in found.text()


def test_elements_that_are_not_built_in_are_never_guaranteed_and_the_group_that_has_them_is_named():
    text = check(P4.format(28), "D4").text()
    assert (
        "m, mr90, mr180, mr270: not built in from stage 1 on: never guaranteed" in text
        and "@D4 in the first stage" in text
    )
    assert "r45, r135, r225, r315 and 8 others: not built in" in check(P4.format(28), "D8").text()


def test_every_repair_is_named_once():
    found = check("56px resize57nearest: 4k3@D4 max3/2")
    assert len({p.architecture for p in found.repairs}) == len(found.repairs) >= 4


def test_an_unknown_name_lists_the_known_ones():
    for ask in (check, named_candidate):
        with pytest.raises(ValueError, match="neither an architecture.*p4cnn, z2cnn"):
            ask("p5cnn")
    assert (
        named_candidate(" P4CNN ").architecture == PUBLISHED["p4cnn"].architecture
        and named_candidate(P4.format(28)).architecture == PUBLISHED["p4cnn"].architecture
    )


def test_an_answer_needs_no_torch():
    program = (
        "import sys; from studies.results.check import check; c = check('resnet44-p4m'); "
        "c.text(); c.as_dict(); "
        "heavy = {'torch', 'optuna', 'ray', 'escnn', 'numpy'} & set(sys.modules); assert not "
        "heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_relaxed_stages_are_near_and_what_decides_stands_in_text_and_json():
    checked = check(Architecture.parse("28px: 10k3@D4+C4, 10k3 max2/2, 10k3@C4b2"))
    values = checked.as_dict()
    assert not values["exact"] and values["surviving_elements"] == ["e"]
    assert values["near_elements"] == ["r90", "r180", "r270"]
    assert [(r["stage"], r["relaxation"], r["certain_group"]) for r in values["relaxations"]] == [
        (1, "D4+C4", "C4"),
        (2, "D4+C4", "C4"),
        (3, "C4b2", "C1"),
    ]
    first = values["breaks"][0]
    assert (first["reason"], first["stage"], first["layer"]) == ("near", 3, "C4b2")
    text = checked.text()
    assert "relaxed in stage 3 (C4b2): near, not exact for certain" in text
    assert "the weights w of its 2 banks vary over C4 decides, measure it" in text
    assert "Near under r90 r180 r270: exact were nothing relaxed" in text
    assert "Input sizes that shift no window nearby: 28, 26" in text
    assert "survives (e): C1, for certain" in text
    assert values["exact_sizes"] == [] and values["unshifted_sizes"][:2] == [28, 26]
    shifted = check(Architecture.parse("29px: 10k3@C4+C1, 10k3 max2/2"))
    assert "Exact input sizes" not in shifted.text() and "To make it exact" not in shifted.text()
    assert "keeps C1, near under C4" in shifted.text()
    assert "r90" in shifted.as_dict()["repairs"][0]["near_elements"]
    kept = check(Architecture.parse("28px: 10k3@D4+C4 max2/2, 10k3@C4"))
    assert kept.verdict.exact and kept.as_dict()["near_elements"] == []
