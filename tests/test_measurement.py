import json
import sys

import pytest
import torch
from test_layerwise import network
from test_merging import settled, spread
from torch import nn

from searchspace.groups import Group
from support.toy_models import Lifting, constant, corner
from trainers.instruments.loading import check_model, load_model
from trainers.instruments.measure import is_folded, measure
from trainers.instruments.measurement import generators

IMAGES = torch.rand(160, 1, 16, 16, generator=torch.Generator().manual_seed(0))
D4, C4 = Group.parse("D4"), Group.parse("C4")


def measured(model, group=D4, **options):
    return measure(model, IMAGES, model(IMAGES).argmax(1), group, step=30, **options)


def test_an_exact_network_is_exact_by_every_instrument():
    found = measured(spread(settled(network("16px: 3k3@D4 max2/2, 3k3"))))
    assert found.accuracy.mean.value == 1 and found.consistency.value == 1
    assert found.error.logits.worst < 1e-4 and max(s.worst for s in found.error.stages) < 1e-4
    assert min(m.correlation for m in found.matched) > 0.9999
    assert max(s.residual for s in found.steerability) < 1e-3
    assert [d.motion for d in found.lie] == [
        "rotation",
        "translation_x",
        "translation_y",
        "scale",
        "shear",
    ] and not found.notes
    assert found.curve.accuracies[3].value == 1 and all(
        b.aligned == 1 and b.barrier < 0.1 for b in found.barriers
    )


def test_a_plain_network_is_broken_by_every_instrument():
    found = measured(spread(settled(network("16px: 12k3 max2/2, 12k3"))))
    assert (
        found.accuracy.accuracy.value == 1
        and found.accuracy.mean.value < 0.9
        and found.consistency.value < 0.9
    )
    assert found.error.logits.mean > 0.05 and min(s.mean for s in found.error.stages) > 0.05
    assert max(m.correlation for m in found.matched) < 0.95
    assert min(s.residual_of_spread for s in found.steerability) > 0.2
    assert [str(b.element) for b in found.barriers] == ["r90", "m"] and found.barriers[
        0
    ].original == 1


@pytest.mark.parametrize(
    "text", ["16px: 3k3@D4 max2/2, 3k3", "17px: 3k3@D4 max2/2, 3k3", "16px: 12k3 max2/2, 12k3"]
)
def test_threads_change_nothing(text):
    model = spread(settled(network(text))) if text[:2] == "16" else spread(network(text))
    images = torch.rand(
        160, 1, *model.architecture.size, generator=torch.Generator().manual_seed(0)
    )
    torch.set_num_threads(2)  # as a command leaves it that measured before
    alone, together = (
        measure(model, images, model(images).argmax(1), D4, step=30, threads=threads).as_dict()
        for threads in (1, 3)
    )
    assert torch.get_num_threads() == 2
    alone.pop("seconds"), together.pop("seconds")
    assert alone == together
    shared = alone["symmetry_accuracy"]["shared"]
    # Transposing the image reads no axis backwards, so that a broken layout keeps it.
    assert (
        shared
        == {
            "16px: 3k3": [str(e) for e in D4.elements],
            "17px: 3k3": ["e", "mr90"],
            "16px: 12k": ["e"],
        }[text[:9]]
    )


def test_only_folded_networks_are_run_by_several_threads():
    from trainers.networks.fold import fold

    assert is_folded(fold(network("16px: 3k3"))) and not any(
        map(is_folded, (network("16px: 3k3"), Lifting("C4"), corner, nn.Flatten()))
    )


def test_a_constant_model_is_refused():
    with pytest.raises(ValueError, match="do not vary"):
        measured(constant)
    silent = network("16px: 6k3 max2/2")
    silent.linear.weight.data.zero_()
    with pytest.raises(ValueError, match="do not vary"):
        measured(silent, threads=2)


def test_any_torch_module_and_any_function_can_be_measured():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    found = measured(model, C4)
    assert (
        [s.stage for s in found.error.stages] == ["0"]
        and [m.stage for m in found.matched] == ["0"]
        and len(found.steerability) == 1
    )
    found = measured(corner, C4)
    assert found.error.stages == () and found.matched == () and len(found.lie) == 5
    assert measured(Lifting("C4"), C4, stages=["maps"]).matched[0].correlation > 0.9999


def test_what_does_not_apply_is_a_note_and_not_an_error():
    found = measure(
        network("16px: 64k3 max2/2"), IMAGES, torch.zeros(160, dtype=torch.int64), C4, step=90
    )
    assert (
        found.steerability == ()
        and "too few to fit" in found.notes[0]
        and "too few to fit" in found.text()
    )


def test_without_a_declared_symmetry_there_is_still_a_curve():
    found = measured(corner, Group.parse("C1"))
    assert (
        found.error is None
        and found.consistency is None
        and len(found.curve.degrees) == 12
        and "Accuracy by angle" in found.text()
    )


def test_the_summary_says_the_same_as_the_instruments():
    from trainers.instruments.accuracy import symmetry_accuracy

    model = spread(settled(network("16px: 3k3@C4 max2/2")))
    labels = model(IMAGES).argmax(1)
    found = measure(model, IMAGES, labels, D4, step=90)
    alone = symmetry_accuracy(model, IMAGES, labels, D4, share_exact=False)
    assert found.accuracy.accuracies == alone.accuracies


def test_the_table_names_every_instrument_and_has_no_machine_in_it():
    text = measured(spread(settled(network("16px: 12k3 max2/2, 12k3")))).text(ascii_only=True)
    for word in (
        "accuracy",
        "worst of them",
        "mr90",
        "consistency",
        "effective invariance",
        "stage 2",
        "rotation",
        "steerability, r90",
        "merge barrier, m",
        "degrees",
    ):
        assert word in text
    assert text.isascii()


def test_as_dict_is_plain():
    values = measured(spread(settled(network("16px: 12k3 max2/2, 12k3")))).as_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert set(values) == {
        "group",
        "num_images",
        "symmetry_accuracy",
        "accuracy_by_angle",
        "consistency",
        "effective_invariance",
        "equivariance_error",
        "lie_derivative",
        "layerwise",
        "steerability",
        "merge_barrier",
        "seconds",
        "notes",
        "corners",
    }


def test_non_square_images_are_refused_with_a_remedy():
    with pytest.raises(ValueError, match="12x16 pixels.*make them square"):
        measure(corner, torch.rand(8, 1, 12, 16), torch.zeros(8), D4)


@pytest.mark.parametrize(
    "group,names",
    [
        ("C4", ["r90"]),
        ("D4", ["r90", "m"]),
        ("C8", ["r90"]),
        ("D1", ["m"]),
        ("C2", ["r180"]),
        ("C3", []),
    ],
)
def test_generators_are_on_the_grid(group, names):
    assert [str(e) for e in generators(Group.parse(group))] == names


def test_models_are_loaded_by_module_or_file_and_function(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\ndef small():\n    return nn.Flatten()\nnumber = 3\ndef "
        "seven():\n    return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_model(f"{tmp_path}/my_networks.py:small"), nn.Flatten)
    sys.modules.pop("my_networks")
    assert isinstance(load_model("my_networks:small"), nn.Flatten)
    for source, message in (
        ("my_networks", "module:function"),
        ("nowhere_at_all:f", "cannot be imported"),
        ("gone.py:f", "no file gone.py"),
        ("my_networks:number", "no function number"),
        ("my_networks:seven", "returned int"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(source)


FAULTS = """
import torch
from torch import nn
def fails(): raise KeyError("weights")
def ends(): raise SystemExit(0)
def function(): return lambda images: images
def type_of(): return nn.Linear
def needs(size): return nn.Flatten()
"""


@pytest.mark.parametrize(
    "name, message",
    [
        ("fails", "^your function failed: KeyError: 'weights'"),
        ("ends", "^your function failed: SystemExit: 0"),
        ("needs", "^your function failed: TypeError: .*size"),
        ("function", "returned function; it must return a torch.nn.Module"),
        ("type_of", "returned type; it must return a torch.nn.Module"),
    ],
)
def test_functions_that_return_no_module_are_refused_in_a_sentence(tmp_path, name, message):
    (tmp_path / "faulty_models.py").write_text(FAULTS)
    with pytest.raises(ValueError, match=message):
        load_model(f"{tmp_path}/faulty_models.py:{name}")


@pytest.mark.parametrize("text", ["def (", "import nowhere_at_all", "raise SystemExit(3)", "1 / 0"])
def test_a_file_that_cannot_be_imported_is_refused_each_time(tmp_path, text):
    (tmp_path / "broken_models.py").write_text(text)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken_models.py cannot be imported: "):
            load_model(f"{tmp_path}/broken_models.py:model")
    assert "broken_models" not in sys.modules


def small(channels=1, classes=10):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, classes),
    )


class Joined(nn.Module):
    """Needs two inputs."""

    def forward(self, images, ages):
        return images.mean((2, 3)) + ages


class Named(nn.Module):
    """Gives its logits by name."""

    def forward(self, images):
        return {"logits": images.mean((2, 3))}


@pytest.mark.parametrize(
    "model, message",
    [
        (
            small(channels=3),
            r"does not take images of shape \[2, 1, 8, 8\]: RuntimeError: .*3 channels",
        ),
        (small(classes=9), "gives 9 logits .* 10 classes"),
        (small(classes=11), "gives 11 logits .* 10 classes"),
        (nn.Conv2d(1, 2, 3), r"returned shape \[2, 2, 6, 6\]"),
        (Joined(), r"it takes 2 inputs \(images, ages\): wrap it in a module"),
        (Named(), "returned dict for 2 images; .* wrap it in a module that does"),
    ],
)
def test_models_of_other_images_or_classes_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        check_model(model, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 10)


@pytest.mark.filterwarnings("ignore")
def test_scripted_models_are_measured_without_stages():
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = torch.jit.script(small().eval())
    check_model(model, images, 10)
    assert measure(model, images, torch.zeros(40), Group.parse("C4"), step=90).error.stages == ()


def test_an_exported_program_is_refused_with_a_remedy():
    program = torch.export.export(small().eval(), (torch.rand(2, 1, 8, 8),)).module()
    with pytest.raises(ValueError, match="cannot be put into evaluation"):
        check_model(program, torch.rand(2, 1, 8, 8), 10)
