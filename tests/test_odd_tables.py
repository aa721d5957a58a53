"""Tables, shards and arrays of odd content: refused in one sentence that says what to do, or read
with what a user should know of them.
"""

import io
import json
import re
import tarfile
import warnings
import zipfile
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from trainers.data.datasets import DataWarning, load_data
from trainers.data.fingerprint import data_fingerprint
from trainers.settings import Data

LABELS = [0, 1] * 6


def encoded(seed, form="PNG"):
    content = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(values).save(content, form)
    return content.getvalue()


IMAGES = [encoded(seed) for seed in range(12)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


def opened(path, **settings):
    """The data set in a file, and what is warned of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        splits = load_data(Data(files=path, **{"validation": 3, **settings}))
    return splits, "\n".join(str(warning.message) for warning in told)


def refused(path, said, **settings):
    with pytest.raises(ValueError, match=said) as caught:
        load_data(Data(files=path, validation=3, **settings))
    message = str(caught.value)
    assert "\n" not in message and " object at 0x" not in message and len(message) < 900


def arrow(folder, columns, names=None):
    """A Parquet file, perhaps with Hugging Face's class names."""
    about = json.dumps({"info": {"features": {"label": {"names": names}}}}) if names else "{}"
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    path = folder / "a.parquet"
    parquet.write_table(table.replace_schema_metadata({b"huggingface": about.encode()}), path)
    return path


def table(folder, text, encoding="utf-8"):
    (folder / "im").mkdir()
    for number, content in enumerate(IMAGES):
        (folder / "im" / f"{number}.png").write_bytes(content)
    path = folder / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def shard(folder, members, name="a.tar", mode: Any = "w"):
    with tarfile.open(folder / name, mode) as archive:
        for called, content in members:
            entry = tarfile.TarInfo(called)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return folder / name


def samples(ending="png", images=IMAGES, label=lambda i: str(i % 2).encode()):
    return [
        member
        for i, image in enumerate(images)
        for member in ((f"{i:02}.{ending}", image), (f"{i:02}.cls", label(i)))
    ]


ROWS = "\n".join(f"im/{i}.png,{'dog' if i % 2 else 'cat'}" for i in range(12))


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"image": IMAGES}, "no column of labels .* its columns are image; name it by"),
        ({"label": LABELS}, "no column of images"),
        ({"image": IMAGES, "label": [None, *LABELS[1:]]}, "1 row without a label, first in row 0"),
        ({"image": IMAGES, "label": ["", "a"] * 6}, "has 6 empty labels, the first"),
        ({"image": IMAGES, "label": [0.5, 1.5] * 6}, "are of type float64, such as 0.5"),
        ({"image": IMAGES, "label": [{"a": 1}] * 12}, "integers or text"),
        ({"image": IMAGES, "label": [[0, 1]] * 12}, "task: multilabel"),
        (
            {"image": IMAGES, "label": pa.array([2**63, 2**63 + 1] * 6, pa.uint64())},
            "type uint64, such as 9223372036854775808",
        ),
        ({"image": [b"text"] * 12, "label": LABELS}, "not an image in a format that Pillow reads"),
        ({"image": [None] * 3 + IMAGES[3:], "label": LABELS}, "cannot be read, more than 1%"),
        ({"image": [{"bytes": {"x": b"a"}}] * 12, "label": LABELS}, "must hold image files as"),
        ({"image": [[1, 2]] * 12, "label": LABELS}, "arrays of pixels: save them as .npz"),
        ({"image": [], "label": []}, "holds null|has no row"),
        ({}, "its columns are none"),
        (pa.table([IMAGES, LABELS, LABELS], ["image", "label", "label"]), "two columns 'label'"),
        (pa.table([IMAGES, IMAGES, LABELS], ["image", "image", "label"]), "two columns 'image'"),
    ],
)
def test_parquet_of_odd_content_is_refused(tmp_path, columns, said):
    refused(arrow(tmp_path, columns), said)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_of_every_type_are_images(tmp_path, kind):
    path = arrow(tmp_path, {"image": pa.array(IMAGES, kind), "label": LABELS})
    assert opened(path)[0].classes == ("0", "1")


def test_the_bytes_of_an_image_column_may_stand_anywhere_in_it(tmp_path):
    column = [{"height": 8, "bytes": content, "path": "x"} for content in IMAGES]
    assert opened(arrow(tmp_path, {"image": column, "label": LABELS}))[0].classes == ("0", "1")


def test_an_image_column_may_hold_paths_alone(tmp_path):
    names = [f"{i}.png" for i in range(len(IMAGES))]
    for name, content in zip(names, IMAGES):
        (tmp_path / name).write_bytes(content)
    column = [{"bytes": None, "path": name} for name in names]  # its bytes are of the type null
    assert opened(arrow(tmp_path, {"image": column, "label": LABELS}))[0].classes == ("0", "1")


def test_two_classes_of_one_name_are_refused(tmp_path):
    path = arrow(tmp_path, {"image": IMAGES, "label": LABELS}, names=["a", "a"])
    refused(path, "hold 'a' twice; give every class")
    refused(arrow(tmp_path, {"image": IMAGES, "label": LABELS}), "'x' twice", classes=("x", "x"))


def test_a_class_without_an_image_is_said(tmp_path):
    path = arrow(tmp_path, {"image": IMAGES, "label": LABELS}, names=["a", "b", "c"])
    assert "no image has the class 'c'" in opened(path)[1]


def test_classes_that_differ_by_spaces_and_capitals_are_doubted(tmp_path):
    labels = ["cat", "cat ", "dog", "Dog"] * 3
    path = arrow(tmp_path, {"image": IMAGES, "label": labels})
    told = opened(path, validation=4)[1]
    assert "'cat', 'cat ' are different classes" in told and "'Dog', 'dog' are diff" in told


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("\ufeffpath,label\n" + ROWS, "utf-8"),
        (("path,label\n" + ROWS).replace(",", ";"), "utf-8"),
        (("path,label\n" + ROWS).replace(",", "\t"), "utf-8"),
        (("path,label\n" + ROWS).replace(",", "|"), "utf-8"),
        (("path,label\n" + ROWS).replace("\n", "\r\n"), "utf-8"),
        (("path,label\n" + ROWS).replace(",", ", "), "utf-8"),
        ("path,label\n" + ROWS.replace("im/", "im\\"), "utf-8"),
        (("path,label\n" + ROWS).replace("\n", ",,\n") + ",,", "utf-8"),
        (("path,label\n" + ROWS).replace("im/", "../FOLDER/im/"), "utf-8"),
    ],
)
def test_csv_in_its_usual_dialects_is_read(tmp_path, text, encoding):
    path = table(tmp_path, text.replace("FOLDER", tmp_path.name), encoding)
    splits, told = opened(path)
    assert splits.classes == ("cat", "dog") and not told


@pytest.mark.parametrize(
    "text, said",
    [
        (("path,label\n" + ROWS).encode("utf-16"), "not a CSV table in UTF-8"),
        (("path,label\n" + ROWS).replace("dog", "dög").encode("latin-1"), "not a CSV table in UTF"),
        (ROWS, r"its columns are im/0.png, cat; name it by .* needs a header"),
        ("path,label\n" + ROWS.replace("im/3", "im/99"), "1 of 12 files .*/im/99.png; paths are"),
        ("path,label\n" + ROWS.replace("im/", "/none/"), "the first is /none/0.png"),
        ("path,label\n" + ROWS.replace("im/0.png,cat", "im/0.png, "), "without a value in 'label'"),
        ("path,label\n" + ROWS.replace("im/0.png,cat", "im/0.png"), "row 1 .* has 1 value,"),
        ("path,label\n" + ROWS + "\nim/1.png," + "x" * 200_000, "not a CSV table"),
        ("path,label\n" + ROWS.replace("dog", "cat"), "has the one class 'cat'"),
        ("path,label\n" + ROWS.replace("dog", "d" * 2000), "2,000 characters"),
        ("path,label\n" + "\n".join(f"im/{i}.png,{i}" for i in range(12)), "a label of its own"),
        ("path,label\n", "a header and no rows"),
        ("", "has no content"),
    ],
)
def test_csv_of_odd_content_is_refused(tmp_path, text, said):
    refused(table(tmp_path, text), said)


def test_what_may_be_a_missing_label_is_said(tmp_path):
    told = opened(table(tmp_path, "path,label\n" + ROWS.replace("cat", "NaN")))[1]
    assert "'NaN' is taken for a class" in told


@pytest.mark.parametrize("pattern", ["*.csv", "*.npz"])
def test_a_pattern_is_for_shards_alone(tmp_path, pattern):
    table(tmp_path, "path,label\n" + ROWS)
    refused(tmp_path / pattern, "patterns are for Parquet and WebDataset alone; name one file")


def test_labels_beyond_64_bits_are_names(tmp_path):
    text = "path,label\n" + ROWS.replace("cat", "9" * 25).replace("dog", "8" * 25)
    assert opened(table(tmp_path, text))[0].classes == ("8" * 25, "9" * 25)
    facts = [
        (name.replace("cls", "json"), b'{"label": 9999999999999999999999%s}' % content)
        if name.endswith("cls")
        else (name, content)
        for name, content in samples()
    ]
    assert len(opened(shard(tmp_path, facts))[0].classes) == 2


def test_files_with_contradictory_labels_are_said(tmp_path):
    told = opened(table(tmp_path, "path,label\n" + ROWS + "\nim/0.png,dog"))[1]
    assert "1 of 12 files in" in told and "the first is im/0.png" in told and "multilabel" in told


@pytest.mark.parametrize(
    "ending, form",
    [("avif", "AVIF"), ("jfif", "JPEG"), ("jpe", "JPEG"), ("jp2", "JPEG2000"), ("pnm", "PPM")],
)
def test_every_ending_that_pillow_decodes_is_read_from_shards_and_tables(tmp_path, ending, form):
    images = [encoded(seed, form) for seed in range(12)]
    assert len(opened(shard(tmp_path, samples(ending, images)))[0].train) == 7
    path = table(tmp_path, "path,label\n" + ROWS.replace("png", ending))
    for number, content in enumerate(images):
        (tmp_path / "im" / f"{number}.{ending}").write_bytes(content)
    assert len(opened(path)[0].train) == 7


def test_a_file_that_is_no_image_is_named_in_its_sample(tmp_path):
    refused(shard(tmp_path, samples("heic")), "'00' in .* no image that can be read, only 00.heic")


def test_samples_of_several_images_are_said(tmp_path):
    members = [
        (name.replace("png", f"{side}.png"), content)
        for name, content in samples()
        for side in (("left", "right") if name.endswith("png") else ("",))
    ]
    assert "first is used: 00.left.png, not 00.right.png" in opened(shard(tmp_path, members))[1]


def test_nothing_of_a_shard_is_missing_silently(tmp_path):
    path = shard(tmp_path, samples())
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    refused(path, "something behind its end, such as a second tar file")
    path.write_bytes(whole[: 1024 * 4 * 6])  # six whole samples
    refused(path, "without the mark of its end")


@pytest.mark.parametrize(
    "members, said",
    [
        (samples(label=lambda i: b"\xff"), "is not text in UTF-8"),
        (samples(label=lambda i: b""), "has no label"),
        ([(f"{'ab'[i % 2]}/{i}.png", IMAGES[i]) for i in range(12)], "has no label"),
        ([("readme.txt", b"hello")], "only readme.txt"),
        ([], "holds no sample"),
    ],
)
def test_shards_of_odd_content_are_refused(tmp_path, members, said):
    refused(shard(tmp_path, members), said)


@pytest.mark.parametrize(
    "name, said",
    [
        ("a.tar.gz", "compressed: unpack it"),
        ("a.TGZ", "compressed: unpack it"),
        ("a.zip", "compressed: unpack it"),
        ("a.xlsx", "save it as a CSV table"),
        ("a.jsonl", "write a CSV table"),
        ("a.h5", "numpy.savez"),
        ("a.pkl", "numpy.savez"),
        ("a.feather", "write it as Parquet"),
        ("a.tfrecord", "as WebDataset shards"),
        ("a", "is not in a format that data.files reads"),
    ],
)
def test_other_files_are_refused_with_what_to_do(tmp_path, name, said):
    refused(shard(tmp_path, samples(), name, "w:gz"), said)
    (tmp_path / "b.tar").write_bytes((tmp_path / name).read_bytes())
    refused(tmp_path / "b.tar", "not an uncompressed tar file .*; unpack")


@pytest.mark.parametrize(
    "form, labels, said",
    [
        ("csv", ["a", "b", "c"], "the test split of .* has the label 'c', which the training"),
        ("csv", ["a"], "the test split of .* has no image of the class 'b'; add some"),
        ("npz", [0, 1, 2], "test_images in .* has the label '2', which the training images do not"),
        ("npz", [0], "test_images in .* has no image of the class '1'; add some"),
    ],
)
def test_a_test_split_that_cannot_be_used_is_said_at_the_start(tmp_path, form, labels, said):
    many = [labels[i % len(labels)] for i in range(12)]
    if form == "npz":
        images = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in IMAGES])
        split = {"train_images": images, "train_labels": LABELS, "test_images": images}
        np.savez(tmp_path / "a.npz", **split, test_labels=many)
        path = tmp_path / "a.npz"
    else:
        rows = [f"im/{i}.png,{'ab'[i % 2]},train" for i in range(12)]
        rows += [f"im/{i}.png,{label},test" for i, label in enumerate(many)]
        path = table(tmp_path, "path,label,split\n" + "\n".join(rows))
    splits, told = opened(path)
    assert re.search(f"the test images cannot be used, though a search goes on.*{said}", told)
    with pytest.raises(ValueError, match="class|label"):
        splits.test()


@pytest.mark.parametrize(
    "labels, said",
    [
        (["0", "0.0", "1", "1.0"], "'0', '0.0' are different classes"),
        (["a", "b", "a|b"], r"the class 'a|b' is named by 'a' and 'b'.*task: multilabel"),
        (["a", "a, b", "b"], "the class 'a, b' is named by 'a' and 'b'"),
    ],
)
def test_labels_that_people_read_otherwise_are_said(tmp_path, labels, said):
    rows = [f'im/{i}.png;"{labels[i % len(labels)]}"' for i in range(12)]
    _, told = opened(table(tmp_path, "path;label\n" + "\n".join(rows)), validation=4, test=4)
    assert re.search(said, told), told


def test_a_sample_that_stands_twice_in_a_shard_is_refused(tmp_path):
    twice = [part for part in samples() for _ in range(2)]
    refused(shard(tmp_path, twice, "a.tar", "w"), "holds .* twice, one after the other; give every")


@pytest.mark.parametrize(
    "values, held",
    [
        ([Decimal(n) for n in LABELS], "decimal128"),
        ([datetime(2020, 1, 1 + n) for n in LABELS], "timestamp"),
        ([{"a": n} for n in LABELS], "struct"),
        ([b"ab"[n : n + 1] for n in LABELS], "binary"),
    ],
)
def test_labels_of_other_types_are_refused_by_their_name(tmp_path, values, held):
    path = arrow(tmp_path, {"image": IMAGES, "label": values})
    refused(path, f"of type {held}.*a label is a class: an integer, or text: give integers or text")
    with pytest.raises(ValueError, match=held):
        data_fingerprint(Data(files=path, validation=3))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives_of_arrays_are_refused_in_one_sentence(tmp_path, save):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    save(tmp_path / "whole.npz", images=images, labels=np.arange(40) % 2)
    whole, draw = (tmp_path / "whole.npz").read_bytes(), np.random.default_rng(1)
    refusals = 0
    for _ in range(40):
        damaged = bytearray(whole)
        for place in draw.integers(0, len(whole), 3):
            damaged[place] = draw.integers(256)
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            opened(tmp_path / "a.npz")
        except ValueError as error:
            refusals += 1
            assert "a.npz" in str(error) and "\n" not in str(error)
    assert refusals > 20


def test_an_array_that_ends_early_or_stands_twice_is_refused(tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(12) % 2)
    np.save(tmp_path / "images.npy", np.zeros((12, 8, 8), np.uint8))
    path = tmp_path / "images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    refused(
        tmp_path, r"images.npy is to hold 896 bytes by its shape .* and has 895; write it again"
    )
    twice = tmp_path / "twice.npz"
    np.savez(twice, images=np.zeros((12, 8, 8), np.uint8), labels=np.arange(12) % 2)
    with zipfile.ZipFile(twice, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("labels.npy", (tmp_path / "labels.npy").read_bytes())
    refused(twice, "twice.npz holds labels twice; write it again with one of each")
