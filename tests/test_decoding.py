"""Image files of every kind that Pillow reads come out upright and with their range."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from trainers.data.datasets import DataWarning, load_data
from trainers.data.decoding import decode, extensions, read_header
from trainers.data.describing import describe
from trainers.data.formats.storing import store_arrays
from trainers.data.pools import file_pool
from trainers.settings import Data


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


# orientation

UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def stored(mode):
    """An image of 4 x 6 pixels of that mode, and what decoding should give before it is turned."""
    values = noise(4, 6, len(mode) if mode in ("LA", "RGB", "RGBA", "CMYK") else 1)
    image = {
        "I;16": lambda: Image.fromarray(values[..., 0].astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(values[..., 0].astype(np.int32) * 257),
        "F": lambda: Image.fromarray((values[..., 0] / 255).astype(np.float32)),
        "1": lambda: Image.fromarray(values[..., 0] > 127),
        "P": lambda: Image.fromarray(values[..., 0]).convert("P"),
        "CMYK": lambda: Image.frombytes("CMYK", (6, 4), values.tobytes()),
    }.get(mode, lambda: Image.fromarray(values.squeeze(-1) if mode == "L" else values))()
    assert image.mode == mode
    if mode in ("I;16", "I", "F"):
        return image, np.repeat(values, 3, -1)
    if mode in ("RGBA", "LA"):
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return image, np.asarray(Image.alpha_composite(black, image.convert("RGBA")))[..., :3]
    return image, np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "I;16", "I", "F", "RGB", "RGBA", "CMYK"])
def test_tiff_of_every_orientation_is_upright_and_of_its_own_size(tmp_path, mode, compression):
    image, expected = stored(mode)
    for orientation, turn in UPRIGHT.items():
        path = tmp_path / f"{orientation}.tif"
        image.save(path, compression=compression, tiffinfo={0x0112: orientation})
        assert np.array_equal(decode(path, 3).transpose(1, 2, 0), turn(expected))
        assert file_pool([path], [0]).size == turn(expected).shape[:2]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif", ".tif"])
def test_other_formats_of_every_orientation_have_their_upright_size(tmp_path, suffix):
    if suffix not in extensions():
        pytest.skip(f"this Pillow decodes no {suffix}")
    for orientation, turn in UPRIGHT.items():
        image = Image.fromarray(noise(16, 24, 3))
        exif = image.getexif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}{suffix}"
        image.save(path, exif=exif)
        assert decode(path, 3).shape[1:] == turn(noise(16, 24)).shape == file_pool([path], [0]).size


# more than 8 bits


def fill(folder, values, suffix=".png"):
    """Two classes of five images of these uint16 values each, the first pixel their number."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            pixels = values.copy()
            pixels[0, 0] = 5 * label + i
            Image.fromarray(pixels).save(folder / name / f"{i}{suffix}")
    return Data(folder=folder)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_than_16_bits_in_files_of_16_keep_256_grey_levels(tmp_path, bits, suffix):
    values = np.linspace(0, 2**bits - 1, 1024).astype(np.uint16).reshape(32, 32)
    data = fill(tmp_path / "set", values, suffix)
    with pytest.warns(DataWarning, match=f"scaled from 0..{2**bits - 1} to 0..255"):
        splits = load_data(data)
    assert splits.top == 2**bits - 1
    for part in (splits.train, splits.validation, splits.test()):
        assert len(part.pixels.unique()) == 256 and part.pixels.max() == 255


def test_one_image_of_full_range_keeps_the_scale_of_all(tmp_path):
    data = fill(tmp_path / "set", np.full((4, 4), 1000, dtype=np.uint16))
    Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16)).save(tmp_path / "set/cat/9.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = load_data(data)
    assert set(splits.train.pixels[:, 0, 1, 1].tolist()) <= {4, 255} and splits.top == 65535


def test_32_bit_integers_are_scaled_by_their_values(tmp_path):
    data = fill(tmp_path / "set", np.full((4, 4), 99_999, dtype=np.int32), ".tif")
    with pytest.warns(DataWarning, match=r"scaled from 0\.\.131071"):
        assert load_data(data).train.pixels[0, 0, 1, 1] == round(99_999 / 131071 * 255)


def test_test_images_beyond_the_range_of_the_training_images_are_refused(tmp_path):
    for part, value in (("train", 4000), ("test", 5000)):
        fill(tmp_path / "set" / part, np.full((4, 4), value, dtype=np.uint16))
    with pytest.warns(DataWarning):
        splits = load_data(Data(folder=tmp_path / "set"))
    with pytest.raises(ValueError, match=r"outside 0\.\.4095"):
        splits.test()


def hot_pixel(values):
    values = values.copy()
    values[3, 4] = 65535
    return values


def deep_npz(folder, images):
    folder.mkdir()
    np.savez(folder / "a.npz", images=images, labels=np.arange(len(images)) % 2)
    return Data(files=folder / "a.npz")


def split_npz(path, train, test):
    labels = np.arange(10) % 2
    arrays = {"train_images": np.stack([train] * 10), "train_labels": labels}
    np.savez(path, test_images=np.stack([test] * 10), test_labels=labels, **arrays)
    return Data(files=path)


LINEAR = np.linspace(0, 4095, 1600).astype(np.uint16).reshape(40, 40)


@pytest.mark.parametrize("files", ["png", "tif", "npz"])
def test_a_hot_pixel_that_leaves_the_others_few_grey_levels_is_said(tmp_path, files):
    if files == "npz":
        data = deep_npz(tmp_path / "set", np.stack([LINEAR] * 5 + [hot_pixel(LINEAR)] * 5))
    else:
        data = fill(tmp_path / "set", LINEAR, f".{files}")
        Image.fromarray(hot_pixel(LINEAR)).save(tmp_path / "set" / "cat" / f"0.{files}")
    said = (
        r"17 of 256 grey levels: they have values from 0 to 4112 where 65535 is white, and "
        r"[1-5] of [\d,]+ pixels lie outside; cut outliers off"
    )
    with pytest.warns(DataWarning, match=said):
        splits = load_data(data)
    assert any("17 of 256" in line for line in describe(splits))


@pytest.mark.parametrize("files", ["png", "tif", "npz", "arrays"])
def test_a_hot_pixel_in_test_images_alone_is_cut_off_after_the_search(tmp_path, files, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        if files in ("png", "tif"):
            for part, values in (("train", LINEAR), ("test", hot_pixel(LINEAR))):
                fill(tmp_path / "set" / part, values, f".{files}")
            splits = load_data(Data(folder=tmp_path / "set"))
        elif files == "npz":
            splits = load_data(split_npz(tmp_path / "a.npz", LINEAR, hot_pixel(LINEAR)))
        else:
            labels = np.arange(10) % 2
            arrays = {"train_images": np.stack([LINEAR] * 10), "train_labels": labels}
            arrays |= {"test_images": np.stack([hot_pixel(LINEAR)] * 10), "test_labels": labels}
            store_arrays(arrays, tmp_path / "stored")
            splits = load_data(Data(files=tmp_path / "stored"))
        test = splits.test()
    assert len(test) == 10 and not test.skipped and splits.top == 4095
    hot = test.pixels.clone()
    hot[..., 3, 4] = splits.train.pixels[0, 0, 3, 4]
    assert (test.pixels[..., 3, 4] == 255).all() and len(splits.train) == 8
    assert (hot[..., 1:, :] == splits.train.pixels[0, :, 1:]).all()
    many = "10 values in 10 of 10 test images of"
    many = "10 values of 16,000" if files in ("npz", "arrays") else many
    assert many in caplog.text and "cut off there" in caplog.text


def test_fractions_of_training_images_that_are_cut_off_are_said(tmp_path):
    values = np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40)
    data = fill(tmp_path / "set", values, ".tif")
    for path in sorted((tmp_path / "set").rglob("*.tif")):
        pixels = values.copy()
        pixels[3, 4:6] = [1.5, -2]
        Image.fromarray(pixels).save(path)
    with pytest.warns(
        DataWarning, match=r"16 values in 8 of 8 images .* outside 0..1 \(from -2 to"
    ):
        load_data(data)


def test_test_arrays_of_another_scale_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        splits = load_data(split_npz(tmp_path / "a.npz", LINEAR, LINEAR * 16))
    with pytest.raises(ValueError, match=r"values from 0 to 65520, .* at most 4095; give all"):
        splits.test()


@pytest.mark.parametrize(
    "train, other", [("uint8", "float32"), ("uint16", "bool"), ("bool", "uint8")]
)
def test_types_of_two_scales_are_refused_before_anything_trains(tmp_path, train, other):
    ones = np.ones((8, 8))
    with pytest.raises(
        ValueError, match=f"of type {other}, and the training images of type {train}"
    ):
        load_data(split_npz(tmp_path / "a.npz", ones.astype(train), ones.astype(other)))
    arrays = dict(np.load(tmp_path / "a.npz"))
    with pytest.raises(ValueError, match="write all with one type, best uint8"):
        store_arrays(arrays, tmp_path / "stored")
    assert not (tmp_path / "stored").exists()


@pytest.mark.parametrize(
    "values, levels",
    [
        (32_000 + LINEAR // 4, 4),  # an offset
        ((LINEAR / 4095 * 0.05).astype(np.float32), 14),
    ],
)
@pytest.mark.parametrize("files", ["tif", "npz"])
def test_values_in_a_small_part_of_their_range_are_said(tmp_path, values, levels, files):
    if files == "npz":
        data = deep_npz(tmp_path / "set", np.stack([values] * 10))
    else:
        data = fill(tmp_path / "set", values, ".tif")
        for path in tmp_path.rglob("*.tif"):
            Image.fromarray(values).save(path)
    with pytest.warns(DataWarning, match=f"{levels} of 256 grey levels"):
        load_data(data)


@pytest.mark.parametrize("values", [LINEAR, LINEAR * 16, np.where(LINEAR > 4000, 4095, 0)])
def test_values_that_fill_their_range_are_not_doubted(tmp_path, values):
    data = deep_npz(tmp_path / "set", np.stack([values.astype(np.uint16)] * 10))
    assert not any("of 256 grey levels" in line for line in described(data))


def test_dark_images_of_8_bits_lose_nothing_and_are_not_doubted(tmp_path):
    data = fill(tmp_path / "set", np.full((8, 8), 3, dtype=np.uint8))
    assert not any("of 256 grey levels" in line for line in described(data))


def described(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return describe(load_data(data))


def test_arrays_of_12_bits_and_files_of_12_bits_have_one_scale(tmp_path):
    """What was trained on an `.npz` is predicted from files as their values say."""
    images = np.stack([LINEAR] * 10)
    with pytest.warns(DataWarning, match=r"0\.\.4095"):
        splits = load_data(deep_npz(tmp_path / "set", images))
    Image.fromarray(LINEAR).save(tmp_path / "a.png")
    assert splits.top == 4095
    assert (decode(tmp_path / "a.png", 1, splits.top) == splits.train.pixels[0].numpy()).all()
    store_arrays((images, np.arange(10) % 2), tmp_path / "stored")
    assert load_data(Data(files=tmp_path / "stored")).top == 4095


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def save_png16(path, values, color_type, transparent=None):
    """A PNG with 16 bits per channel, values [H, W, channels], and perhaps a transparent colour."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
        + (
            chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
            if transparent
            else b""
        )
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_a_transparent_colour_of_16_bits_is_black(tmp_path):
    save_png16(tmp_path / "a.png", np.array([[[65535], [25700], [300]]]), 0, (65535,))
    assert decode(tmp_path / "a.png", 1).tolist() == [[[0, 100, 1]]]
    colors = np.array([[[1000, 2000, 65535], [1000, 2000, 300], [65535, 0, 0]]])
    save_png16(tmp_path / "b.png", colors, 2, (1000, 2000, 65535))
    assert decode(tmp_path / "b.png", 3)[:, 0].T.tolist() == [[0, 0, 0], [3, 7, 1], [255, 0, 0]]


def test_the_transparent_colour_does_not_decide_on_the_scale(tmp_path):
    for name in ("set/a", "set/b"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(4):
            values = np.array([[[65535], [4095], [i]]])
            save_png16(tmp_path / name / f"{i}.png", values, 0, (65535,))
    with pytest.warns(DataWarning, match=r"scaled from 0\.\.4095"):
        assert load_data(Data(folder=tmp_path / "set")).train.pixels[0, 0, 0, :2].tolist() == [
            0,
            255,
        ]


def test_transparency_of_8_bits_is_black(tmp_path):
    for mode, transparent in (("L", 7), ("RGB", (7, 7, 7)), ("P", 7)):
        image = Image.fromarray(np.array([[7, 200]], dtype=np.uint8)).convert(mode)
        if mode == "P":
            image = Image.fromarray(np.array([[7, 200]], dtype=np.uint8))
            image.putpalette([value for i in range(256) for value in (i, i, i)])
        image.save(tmp_path / "a.png", transparency=transparent)
        assert decode(tmp_path / "a.png", 3)[:, 0].T.tolist() == [[0, 0, 0], [200, 200, 200]]


def test_dark_colour_of_16_bits_is_said(tmp_path):
    for name in ("set/a", "set/b"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(4):
            save_png16(tmp_path / name / f"{i}.png", np.full((2, 2, 3), 4095 - i), 2)
    with pytest.warns(DataWarning, match="16 bits per channel .* above 15 of 255"):
        load_data(Data(folder=tmp_path / "set"))


# large images


def test_an_image_of_too_many_pixels_is_one_clear_message(tmp_path):
    data = fill(tmp_path / "set", np.zeros((4, 4), dtype=np.uint16))
    header = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    for name in ("cat", "dog"):
        for i in range(5):
            (tmp_path / "set" / name / f"bomb{i}.png").write_bytes(bomb + chunk(b"IEND", b""))
    message = (
        r"images cannot be read, more than 1%; .*bomb\d.png \(13000 x 13000 pixels; an "
        r"image may have at most 89,478,485, so make it smaller"
    )
    with pytest.raises(ValueError, match=message):
        load_data(data)


def test_large_images_are_not_warned_of_by_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = fill(tmp_path / "set", np.full((4, 4), 65535, dtype=np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(data)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_a_pipe_in_place_of_an_image_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="not a regular file"):
        read_header(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.eps", "a.jpg"])
def test_what_an_image_says_is_run_by_no_program(tmp_path, monkeypatch, name):
    """Pillow gives PostScript, under whatever name, to Ghostscript, which runs it."""
    (tmp_path / name).write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\nshowpage\n%%EOF\n"
    )
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for read in (read_header, lambda path: decode(path, False)):
        with pytest.raises(UnidentifiedImageError):
            read(tmp_path / name)
    assert not ran.exists()
