import pytest
import torch
from torch import nn

from searchspace.groups import Element, Group
from support.toy_models import Lifting, constant, corner, pixel_mean
from trainers.actions import act
from trainers.instruments.equivariance import equivariance_error

D4, C4, C8 = Group.parse("D4"), Group.parse("C4"), Group.parse("C8")
IMAGES = torch.rand(24, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_model_that_reads_a_corner_changes_as_much_as_with_another_image():
    error = equivariance_error(corner, IMAGES, D4).logits
    assert error.mean == pytest.approx(1, abs=0.1)
    assert error.mean_correlation < 0.2


def test_an_invariant_model_has_no_error():
    error = equivariance_error(pixel_mean, IMAGES, D4).logits
    assert error.worst < 1e-5 and min(error.correlation) > 0.99999


def test_constants_are_refused():
    with pytest.raises(ValueError, match="do not vary over the images"):
        equivariance_error(constant, IMAGES, D4)


def test_a_constant_up_to_rounding_is_refused():
    with pytest.raises(ValueError, match="do not vary"):
        equivariance_error(
            lambda x: 3 + 1e-7 * x.mean((1, 2, 3))[:, None].expand(-1, 4), IMAGES, D4
        )


def test_non_finite_logits_are_refused():
    with pytest.raises(ValueError, match="not all finite"):
        equivariance_error(lambda x: corner(x) / 0, IMAGES, D4)


def test_logits_that_are_integers_are_refused():
    with pytest.raises(ValueError, match="logits of type torch.int64; they must be floating"):
        equivariance_error(lambda x: (9 * corner(x)).long(), IMAGES, Group.parse("C4"))


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="at least two images"):
        equivariance_error(corner, IMAGES[:1], D4)


def test_the_trivial_group_is_refused():
    with pytest.raises(ValueError, match="larger group"):
        equivariance_error(corner, IMAGES, Group.parse("C1"))


@pytest.mark.parametrize("group", ["C4", "D4", "C2", "D1"])
def test_regular_fields_of_an_exact_network_have_no_error(group):
    model = Lifting(group)
    error = equivariance_error(
        model, IMAGES, Group.parse(group), stages=["maps"], fields={"maps": Group.parse(group)}
    )
    assert error.logits.worst < 1e-5 and error.stages[0].worst < 1e-5
    assert min(error.stages[0].correlation) > 0.99999


def test_fields_whose_channels_are_taken_for_plain_ones_have_an_error():
    error = equivariance_error(Lifting("C4"), IMAGES, C4, stages=["maps"])
    assert (
        error.logits.worst < 1e-5
        and error.stages[0].mean > 0.3
        and error.stages[0].mean_correlation < 0.9
    )


def test_a_moved_subsampling_grid_is_seen_in_maps_and_logits():
    error = equivariance_error(
        Lifting("C4", shift=True), IMAGES, C4, stages=["maps"], fields={"maps": C4}
    )
    assert (
        error.logits.mean > 0.03
        and error.stages[0].mean > 0.3
        and error.features == error.stages[0].mean
    )


def test_an_element_outside_the_group_is_seen():
    error = equivariance_error(Lifting("C4"), IMAGES, D4).logits
    assert error.over(C4.elements) < 1e-5 < 0.03 < error.over([Element.parse("m")])


def test_plain_maps_move_with_the_pixels():
    blur = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    nn.init.constant_(blur.weight, 0.1)
    model = nn.Sequential(blur, nn.AdaptiveMaxPool2d(1), nn.Flatten())
    assert equivariance_error(model, IMAGES, D4).stages[0].worst < 1e-5
    nn.init.normal_(blur.weight)
    assert equivariance_error(model, IMAGES, D4).stages[0].mean > 0.3


def test_the_definitions_agree_with_brute_force_over_pairs_of_images():
    model, element = Lifting("C2", shift=True).double(), Element.parse("r90")
    images = IMAGES[:6].double()
    before, after = model(images), model(act(images, element))
    pairs = torch.stack(
        [(before[i] - before[j]).square().mean() for i in range(6) for j in range(6) if i != j]
    ).mean()
    columns = [
        torch.corrcoef(torch.stack([before[:, c], after[:, c]]))[0, 1]
        for c in range(before.shape[1])
    ]
    error = equivariance_error(model, images, C4).logits
    place = error.elements.index(element)
    assert error.relative[place] == pytest.approx(
        float(((after - before).square().mean() / pairs).sqrt().detach())
    )
    assert error.correlation[place] == pytest.approx(float(torch.stack(columns).mean().detach()))
    assert error.l1[place] == pytest.approx(float((after - before).abs().mean().detach()))
    assert error.l2[place] == pytest.approx(float((after - before).norm(dim=1).mean().detach()))


def test_the_error_of_maps_agrees_with_brute_force_over_pairs_of_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    images, element = IMAGES[:5].double(), Element.parse("r90")
    maps = model[0](images).detach()
    pairs = torch.stack(
        [(maps[i] - maps[j]).square().mean() for i in range(5) for j in range(5) if i != j]
    ).mean()
    change = model[0](act(images, element)).detach() - act(maps, element)
    stage = equivariance_error(model, images, C4).stages[0]
    assert stage.relative[stage.elements.index(element)] == pytest.approx(
        float((change.square().mean() / pairs).sqrt())
    )


def test_passes_of_any_length_give_the_same_figures():
    model = Lifting("C4", shift=True)
    whole, parts = (
        equivariance_error(model, IMAGES, D4, stages=["maps"], images_per_pass=n) for n in (512, 24)
    )
    assert whole.logits.relative == pytest.approx(parts.logits.relative, rel=1e-4)
    assert whole.stages[0].relative == pytest.approx(parts.stages[0].relative, rel=1e-4)


def test_images_are_moved_before_they_are_normalised():
    seen = []
    equivariance_error(
        lambda x: seen.append(x) or corner(x), IMAGES, C8, normalise=lambda x: (x - 0.5) / 0.25
    )
    assert min(float(x[:, :, 0, 0].min()) for x in seen[1:]) == pytest.approx(-2), (
        "uncovered corners are black pixels, not zeros"
    )


def test_angles_off_the_grid_are_compared_inside_the_circle():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 33), torch.linspace(-1, 1, 33), indexing="ij")
    smooth = torch.stack(
        [(-((x - a) ** 2 + (y - b) ** 2) / 0.3).exp() for a in (-0.4, 0, 0.4) for b in (-0.3, 0.3)]
    )[:, None]
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    nn.init.ones_(model[0].weight)
    # a rotated map has 0 in its corners where the rotated image has 5
    nn.init.constant_(model[0].bias, 5)
    stage = equivariance_error(model, smooth, C8, stages=["0"]).stages[0]
    assert stage.worst < 0.02


def test_non_square_images_keep_what_keeps_their_shape():
    images = torch.rand(8, 1, 16, 20, generator=torch.Generator().manual_seed(1))
    error = equivariance_error(Lifting("C4"), images, C4, stages=["maps"], fields={"maps": C4})
    assert error.logits.worst < 1e-5 and error.stages[0].worst < 1e-5


def test_as_dict_is_plain():
    import json

    values = equivariance_error(Lifting("C4"), IMAGES, C4, stages=["maps"]).as_dict()
    assert json.loads(json.dumps(values)) == values and set(values["logits"]["elements"]) == {
        "r90",
        "r180",
        "r270",
    }


def test_a_model_without_values_is_refused():
    from trainers.instruments.feature_maps import measuring

    with pytest.raises(ValueError, match="on the device meta, which hold no values; load"):
        with measuring(torch.nn.Linear(2, 2, device="meta")):
            pass
