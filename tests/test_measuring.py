"""The work of `measure` that the command line adds to the instruments: what a name means."""

import pytest
import torch

from bundles import untrained
from searchspace.groups import Group
from studies.errors import StudyError
from studies.measuring import find_subject
from test_layerwise import network
from test_merging import spread
from trainers.measurement import measure


def bundle(folder, text):
    return find_subject(str(untrained(folder, text, spread(network(text)))))


@pytest.mark.parametrize("text,exact", [("16px: 3k3@C4 max2/2, 3k3@C2", True), ("17px: 3k3@C4 max2/2, 3k3@C2", False)])
def test_the_stages_of_a_bundle_are_measured_as_the_fields_that_they_are(tmp_path, text, exact):
    subject = bundle(tmp_path, text)
    assert subject.fields == {"stage 1": Group.parse("C4"), "stage 2": Group.parse("C2")}
    images = torch.rand(64, 1, *subject.size, generator=torch.Generator().manual_seed(0))
    found = measure(subject.model, images, torch.zeros(64), Group.parse("C2"), step=90, normalise=subject.normalise, fields=subject.fields)
    assert all((stage.worst < 1e-4) == exact for stage in found.error.stages) and (found.error.logits.worst < 1e-3) == exact


def test_a_name_that_means_nothing_is_refused(tmp_path):
    with pytest.raises(StudyError, match="no bundle"):
        find_subject(str(tmp_path))
