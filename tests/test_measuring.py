"""The work of `measure` that the command line adds to the instruments: what a name means."""

import json

import pytest
import torch
from test_layerwise import network
from test_merging import spread

from searchspace.groups import Group
from studies.errors import StudyError
from studies.results.measure_trial import find_subject
from support.bundles import rehash, untrained
from trainers.instruments.measure import measure


def bundle(folder, text):
    return find_subject(str(untrained(folder, text, spread(network(text)))))


@pytest.mark.parametrize(
    "text,exact", [("16px: 3k3@C4 max2/2, 3k3@C2", True), ("17px: 3k3@C4 max2/2, 3k3@C2", False)]
)
def test_the_stages_of_a_bundle_are_measured_as_the_fields_that_they_are(tmp_path, text, exact):
    subject = bundle(tmp_path, text)
    assert subject.fields == {"stage 1": Group.parse("C4"), "stage 2": Group.parse("C2")}
    images = torch.rand(64, 1, *subject.size, generator=torch.Generator().manual_seed(0))
    found = measure(
        subject.model,
        images,
        torch.zeros(64),
        Group.parse("C2"),
        step=90,
        normalise=subject.normalise,
        fields=subject.fields,
    )
    assert (
        all((stage.worst < 1e-4) == exact for stage in found.error.stages)
        and (found.error.logits.worst < 1e-3) == exact
    )


def test_a_bundle_says_what_its_training_has_seen(tmp_path):
    folder = untrained(tmp_path, "16px: 3k3", spread(network("16px: 3k3")))
    c4, manifest = Group.parse("C4"), json.loads((folder / "bundle.json").read_text())
    for training, seen in (
        ({"augment": {}}, c4.elements[:1]),
        ({"augment": {"rotation": "group"}}, c4.elements),
        (
            {"augment": {}, "learned": {"width rotation": 3.2}},
            (*c4.elements[:2], c4.elements[3]),
        ),
    ):
        changed = {**manifest, "training": training}
        (folder / "bundle.json").write_text(json.dumps(changed))
        assert find_subject(str(folder)).seen(c4) == seen


def test_a_bundle_is_measured_with_the_corners_of_its_training(tmp_path):
    folder = untrained(tmp_path, "16px: 3k3", spread(network("16px: 3k3")))
    manifest = json.loads((folder / "bundle.json").read_text())
    for training, corners in (({}, "black"), ({"corners": "reflect"}, "reflect")):
        (folder / "bundle.json").write_text(json.dumps({**manifest, "training": training}))
        assert find_subject(str(folder)).corners == corners
    wrong = {**manifest, "training": {"corners": "sepia"}}
    (folder / "bundle.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match="corners"):
        find_subject(str(folder))


def test_code_in_a_bundle_is_executed_only_when_told_to(tmp_path):
    folder, marker = (
        untrained(
            tmp_path, "16px: 3k3@C4 max2/2, 3k3@C2", spread(network("16px: 3k3@C4 max2/2, 3k3@C2"))
        ),
        tmp_path / "executed",
    )
    source = folder / "model.py"
    source.write_text(source.read_text() + f"\nopen({str(marker)!r}, 'w')\n")
    with pytest.raises(ValueError, match="model.py has changed since the export"):
        find_subject(str(folder))
    rehash(folder)
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    careful = find_subject(str(folder))
    assert not marker.exists()
    told = find_subject(str(folder), run_code=True)
    assert marker.exists()
    assert torch.equal(careful.model(careful.normalise(images)), told.model(told.normalise(images)))


def test_a_name_that_means_nothing_is_refused(tmp_path):
    with pytest.raises(StudyError, match="not a bundle"):
        find_subject(str(tmp_path))


@pytest.mark.parametrize("number", ["abc", "-1", "1.5", "²", ""])
def test_what_is_no_number_of_a_trial_is_said(tmp_path, number):
    (tmp_path / "study.yaml").touch()
    with pytest.raises(StudyError, match="is not the number of a trial; .*equisearch trials"):
        find_subject(f"{tmp_path}:{number}")
