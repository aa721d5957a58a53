import pytest
import torch

from searchspace.groups import Element, Group
from trainers.actions import act
from trainers.data.augment import crop, rotate, seen, shift, transform_images
from trainers.data.colour import jitter
from trainers.settings import Augment, ColourJitter, Normal

GROUPS = ("C1", "C2", "C4", "D1", "D4", "C8", "D8", "C3")


def images(count=200, channels=2, height=11, width=11, seed=0):
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def drawn(pixels, group="C4", seed=0, **augment):
    return transform_images(
        pixels, Augment(**augment), Group.parse(group), torch.Generator().manual_seed(seed)
    )


def names(elements):
    return [str(element) for element in elements]


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 135, 180, 270, 300])
@pytest.mark.parametrize("size", [(12, 12), (11, 11)])
def test_rotation_has_the_direction_of_act(degrees, size):
    pixels = images(4, 3, *size)
    expected = act(pixels, Element.parse(f"r{degrees}"))
    assert (rotate(pixels, torch.full((4,), float(degrees))) - expected).abs().max() < 1e-5


def test_rotation_of_non_square_images_does_not_shear():
    pixels = images(4, 1, 11, 17)
    assert (
        rotate(pixels, torch.full((4,), 45.0)) - act(pixels, Element.parse("r45"))
    ).abs().max() < 1e-5


def test_every_image_has_its_own_angle():
    pixels = images(1).expand(5, -1, -1, -1)
    angles = torch.tensor([0.0, 10, 100, 200, 300])
    together = rotate(pixels, angles)
    for i in range(5):
        assert torch.equal(together[i : i + 1], rotate(pixels[:1], angles[i : i + 1]))
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("name", GROUPS)
def test_group_rotation_draws_every_element_equally_and_nothing_else(name):
    group = Group.parse(name)
    pixels = images(60 * group.order)
    result = drawn(pixels, name, rotation="group")
    moved = torch.stack([act(pixels, element) for element in group.elements])
    tolerance = 0 if group.on_grid else 1e-5
    same = (moved - result).abs().flatten(2).amax(2) <= tolerance
    assert (same.sum(0) == 1).all()
    assert same.sum(1).min() > 30  # of 60 expected


def test_quarter_turns_are_exact_index_moves():
    pixels = images()
    assert torch.equal(
        drawn(pixels, "D4", rotation="group").flatten(1).sort(1).values,
        pixels.flatten(1).sort(1).values,
    )


def test_group_rotation_of_non_square_images_keeps_the_size():
    pixels = images(height=9, width=13)
    result = drawn(pixels, "C4", rotation="group")
    turned = rotate(pixels, torch.full((200,), 90.0))
    assert result.shape == pixels.shape
    assert any(torch.allclose(result[i], turned[i], atol=1e-5) for i in range(20))


def angle_of(result):
    """The angle at which a bright spot to the right of the centre has arrived, in degrees."""
    grid = torch.arange(41.0) - 20
    x, y = (result[:, 0] * grid).sum((1, 2)), -(result[:, 0] * grid[:, None]).sum((1, 2))
    return torch.rad2deg(torch.atan2(y, x)) % 360


def spot(count):
    pixels = torch.zeros(count, 1, 41, 41)
    pixels[:, :, 19:22, 32:35] = 1
    return pixels


def test_uniform_angles_are_uniform():
    angles = angle_of(drawn(spot(4000), rotation="uniform"))
    counts = torch.histc(angles, 8, 0, 360)
    assert counts.min() > 430 and counts.max() < 570  # 500 expected, standard deviation 21


def test_normal_angles_have_their_mean_and_deviation():
    angles = angle_of(drawn(spot(4000), rotation=Normal(normal=(45, 20))))
    angles = (angles + 180) % 360 - 180
    assert abs(angles.mean() - 45) < 1.5 and abs(angles.std() - 20) < 1


def test_mirroring_is_half_of_the_time_and_before_the_rotation():
    pixels = images(400)
    same = (drawn(pixels, mirror=True) == pixels).flatten(1).all(1)
    flipped = (drawn(pixels, mirror=True) == pixels.flip(-1)).flatten(1).all(1)
    assert (same ^ flipped).all() and 160 < flipped.sum() < 240
    result = drawn(pixels, rotation=Normal(normal=(90, 0)), mirror=True)
    moved = [
        (result - act(pixels, Element.parse(name))).abs().flatten(1).amax(1) < 1e-5
        for name in ("r90", "mr90")
    ]
    assert (moved[0] ^ moved[1]).all()


def test_shift_moves_whole_pixels_and_fills_with_zero():
    pixels = images(3)
    result = shift(pixels, torch.tensor([2, 0, -1]), torch.tensor([-1, 0, 3]), 3)
    assert (
        torch.equal(result[0, :, 2:, :-1], pixels[0, :, :-2, 1:])
        and not result[0, :, :2].any()
        and not result[0, :, :, -1:].any()
    )
    assert torch.equal(result[1], pixels[1])
    assert torch.equal(result[2, :, :-1, 3:], pixels[2, :, 1:, :-3])


def test_random_shifts_reach_every_offset():
    pixels = torch.zeros(600, 1, 9, 9)
    pixels[:, :, 4, 4] = 1
    assert (drawn(pixels, shift=2).sum((0, 1)) > 0).nonzero().tolist() == [
        [i, j] for i in range(2, 7) for j in range(2, 7)
    ]


@pytest.mark.parametrize(
    "augment",
    [
        {"rotation": "uniform"},
        {"rotation": "group", "shift": 2, "mirror": True},
        {"rotation": Normal(normal=(0, 10))},
    ],
)
def test_the_generator_decides_alone(augment):
    pixels = images()
    before = torch.random.get_rng_state()
    first = drawn(pixels, "D8", seed=3, **augment)
    assert torch.equal(first, drawn(pixels, "D8", seed=3, **augment))
    assert not torch.equal(first, drawn(pixels, "D8", seed=4, **augment))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(images(), pixels)  # the input is left as it was


def test_no_augmentation_returns_the_images_and_draws_nothing():
    pixels, generator = images(), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert transform_images(pixels, Augment(), Group.parse("C4"), generator) is pixels
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    "group,augment,expected",
    [
        ("C4", {}, ["e"]),
        ("D4", {"mirror": True}, ["e", "m"]),
        ("C4", {"mirror": True}, ["e"]),
        ("D4", {"rotation": "group"}, ["e", "r90", "r180", "r270", "m", "mr90", "mr180", "mr270"]),
        ("D4", {"rotation": "uniform"}, ["e", "r90", "r180", "r270"]),
        ("D1", {"rotation": "uniform", "mirror": True}, ["e", "m"]),
        ("C4", {"rotation": Normal(normal=(45, 20))}, []),
        ("C8", {"rotation": Normal(normal=(45, 20))}, ["r45"]),
        ("C4", {"rotation": Normal(normal=(45, 40))}, ["e", "r90"]),
        ("C4", {"rotation": Normal(normal=(-10, 50))}, ["e", "r90", "r270"]),
        ("C8", {"rotation": Normal(normal=(0, 0))}, ["e"]),
        ("C4", {"shift": 3}, ["e"]),
    ],
)
def test_orientations_seen_in_training(group, augment, expected):
    assert names(seen(Augment(**augment), Group.parse(group))) == expected


def test_a_learned_augmentation_has_seen_the_angles_within_its_width():
    c8 = Group.parse("C8")
    assert names(seen(Augment(), c8, 89.9)) == ["e", "r45", "r315"]
    assert names(seen(Augment(), c8, 90.0)) == ["e", "r45", "r90", "r270", "r315"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same():
    pixels = images()
    for augment in ({"rotation": "group", "shift": 2, "mirror": True}, {"rotation": "uniform"}):
        assert (
            drawn(pixels.cuda(), "D8", **augment).cpu() - drawn(pixels, "D8", **augment)
        ).abs().max() < 1e-4


# crops and colour


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_crops_keep_their_share_of_the_area_and_stay_inside():
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(512, 1, 64, 64) / 64
    cropped = transform_images(ramp, Augment(crop=0.25), Group.parse("C4"), generator(0))
    width = cropped[..., 63] - cropped[..., 0]  # of what each image shows, as a share
    assert width.min() > 0.47 and width.max() > 0.9 and cropped.shape == ramp.shape
    assert 0.7 < width.mean() < 0.8  # of the root of a share between 1/4 and 1: 7/9, less borders
    assert cropped.min() >= 0 and cropped.max() <= ramp.max()
    whole = crop(ramp[:2], torch.ones(2), torch.rand(2, 2))
    assert torch.allclose(whole, ramp[:2], atol=1e-6)
    corner = crop(ramp[:1], torch.tensor([0.5]), torch.zeros(2, 1))
    assert torch.allclose(
        corner[..., 1:63], ramp[:1, ..., :1] + torch.arange(1, 63) / 128, atol=0.01
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue"])
def test_colours_change_as_torchvision_changes_them(kind, channels):
    from torchvision.transforms.v2 import functional

    pixels = images(6, channels, 5, 5)
    pixels[0] = 0.5  # without a hue
    amounts, most = torch.rand(4, 6, generator=generator(2)), 0.4
    changed = jitter(pixels, ColourJitter(**{kind: most}), amounts)
    row = ["brightness", "contrast", "saturation", "hue"].index(kind)
    for image, new, amount in zip(pixels, changed, (most * (2 * amounts[row] - 1)).tolist()):
        factor = amount if kind == "hue" else 1 + amount
        expected = getattr(functional, f"adjust_{kind}")(image, factor)
        assert torch.allclose(new, expected, atol=1e-4)


def test_later_changes_leave_the_draws_of_earlier_ones():
    pixels = images(8, 3, 9, 9)
    one, both = generator(4), generator(4)
    plain = Augment(rotation="group", shift=2, mirror=True)
    with_colour = plain.model_copy(update={"colour_jitter": ColourJitter(brightness=1e-9)})
    first = transform_images(pixels, plain, Group.parse("D4"), one)
    second = transform_images(pixels, with_colour, Group.parse("D4"), both)
    assert torch.allclose(first, second, atol=1e-6)
    again = transform_images(pixels, with_colour, Group.parse("D4"), generator(4))
    assert torch.equal(second, again)
