"""Bundles whose manifest holds odd values where `measure`, `soften` and `predict` read them: each
is refused in one line as damaged, or does what an untouched bundle does.
"""

import math

import numpy as np
import pytest
from PIL import Image

from searchspace.groups import Group
from studies.config import parse
from studies.errors import StudyError
from studies.results.after.softening import soften_bundle
from studies.results.measure_trial import find_subject
from studies.results.predictions import predict_images
from support.bundles import bundle, copied, manifest_of, subject, write_manifest  # noqa: F401

ODD = [None, True, -1, 10**400, "x", [], {"a": None}, [[[[]]]]]


@pytest.fixture(scope="module")
def study():
    return parse("data: {name: digits, train: 300, validation: 101}", overrides={})


def measured(folder, _study):
    found = find_subject(str(folder))
    seen = found.seen and found.seen(Group.parse("D4"))
    assert found.normalise is not None
    return seen, found.corners, found.model(found.normalise(images()))


def softened(folder, study):
    return soften_bundle(folder, study, group="C4", softness=[0.5], images=2)["points"]


def predicted(folder, _study):
    pixels = np.arange(400, dtype=np.uint16).reshape(20, 20) * 150
    path = folder.parent / "deep.png"
    Image.fromarray(pixels).save(path)
    found = predict_images(folder, [path], orbit=True)
    assert not found.skipped and found.table()
    assert all(0 <= share <= 1 for share in found.rows[0]["probabilities"].values())
    return found.rows


def images():
    import torch

    return torch.zeros(1, 1, 17, 17, dtype=torch.uint8)


def changed(value, path, odd):
    """The value with `odd` at the path."""
    if not path:
        return odd
    inner = list(value) if isinstance(value, list) else dict(value)
    inner[path[0]] = changed(inner[path[0]], path[1:], odd)
    return inner


def places(value, path):
    """The path of each value in part of a manifest; of lists that of the first entry."""
    yield path
    for key in value if isinstance(value, dict) else range(min(1, isinstance(value, list))):
        yield from places(value[key], (*path, key))


@pytest.mark.parametrize(
    "use, part",
    [(measured, "training"), (predicted, "content"), (predicted, "declared")],
)
def test_odd_values_are_damage_or_change_nothing(copied, study, use, part):
    whole, refused = manifest_of(copied), 0
    listed = [path for path in places(whole[part], (part,)) if path[1:2] != ("network",)]
    for path in listed:
        for odd in ODD:
            write_manifest(copied, changed(whole, path, odd))
            try:
                use(copied, study)
            except (ValueError, StudyError) as error:
                refused, said = refused + 1, str(error)
                assert "\n" not in said and len(said) < 1000 and "validation error" not in said
                assert "damaged" in said or "cannot be loaded" in said, (path, said)
    assert refused >= len(ODD) - 1


@pytest.mark.parametrize(
    "path, value",
    [
        (("data", "top"), 0),
        (("data", "top"), 1.5),
        (("data", "top"), "65535"),
        (("training", "augment"), None),
        (("training", "augment", "shift"), -1),
        (("training", "corners"), "square"),
        (("training", "learned"), {"width rotation": math.inf}),
        (("training", "learned"), []),
    ],
)
def test_what_a_command_relies_on_is_checked_when_the_manifest_is_read(copied, study, path, value):
    write_manifest(copied, changed(manifest_of(copied), path, value))
    for use in (measured, predicted, softened):
        with pytest.raises((ValueError, StudyError), match=f"is damaged.*{path[0]}"):
            use(copied, study)


def test_a_true_in_place_of_a_one_is_read_as_the_architecture_says(copied, study):
    whole = manifest_of(copied)
    (before,) = predicted(copied, study)
    path = "content", "network", "stages", 0, "blocks", 0, "convolutions", 0, "stride"
    write_manifest(copied, changed(whole, path, True))
    assert predicted(copied, study) == (before,)
