"""Tables of images with labels as data: CSV, Parquet, Hugging Face datasets, WebDataset shards."""

import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from trainers.data.datasets import load_data
from trainers.data.fingerprint import data_fingerprint
from trainers.settings import Data

NAMES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (6, 5)).astype(np.uint8)


def png(i):
    file = io.BytesIO()
    Image.fromarray(pixels(i)).save(file, "PNG")
    return file.getvalue()


def rows(count=45):
    """(number, class, split, patient) of images: three images a patient, of one class."""
    for i in range(count):
        yield i, i // 3 % 3, "train" if i < 27 else "val" if i < 36 else "test", f"p{i // 3}"


def write_csv(folder, split=False, label=lambda c: NAMES[c], delimiter=","):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    header = ["path", "label", "patient", *(["split"] if split else [])]
    lines = [delimiter.join(header)]
    for i, c, part, patient in rows():
        (folder / "images" / f"{i}.png").write_bytes(png(i))
        cells = [f"images/{i}.png", str(label(c)), patient, *([part] if split else [])]
        lines.append(delimiter.join(cells))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


def arrow_table(some, image="image", names=NAMES, bytes_only=False):
    """As Hugging Face writes an Image and a ClassLabel column."""
    some = list(some)
    images = [png(i) if bytes_only else {"bytes": png(i), "path": f"{i}.png"} for i, *_ in some]
    kind = pa.binary() if bytes_only else pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {
        image: pa.array(images, kind),
        "label": pa.array([c for _, c, *_ in some], pa.int64()),
        "patient": pa.array([patient for *_, patient in some]),
    }
    features = {
        image: {"_type": "Image"},
        "label": {"names": list(names or ()), "_type": "ClassLabel"},
    }
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.table(columns).replace_schema_metadata(about if names else {})


def write_parquet(folder, split=False):
    folder.mkdir(parents=True, exist_ok=True)
    if not split:
        parquet.write_table(arrow_table(rows()), folder / "a.parquet", row_group_size=7)
        return folder / "a.parquet"
    for part in ("train", "val", "test"):
        table = arrow_table(row for row in rows() if row[2] == part)
        parquet.write_table(table, folder / f"{part}-00000-of-00001.parquet", row_group_size=7)
    return folder


def write_saved(folder, split=False):
    def save(place, some):
        place.mkdir(parents=True)
        table = arrow_table(some)
        half = len(table) // 2
        files = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
        for name, part in zip(files, (table.slice(0, half), table.slice(half))):
            with pa.OSFile(str(place / name), "wb") as sink:
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(part)
        state = {"_data_files": [{"filename": name} for name in files], "_fingerprint": "x"}
        (place / "state.json").write_text(json.dumps(state))
        (place / "dataset_info.json").write_text("{}")

    if not split:
        save(folder, rows())
        return folder
    for part in ("train", "validation", "test"):
        save(folder / part, (row for row in rows() if row[2] == part[:3] or row[2] == part))
    splits = {"splits": ["train", "validation", "test"]}
    (folder / "dataset_dict.json").write_text(json.dumps(splits))
    return folder


def write_tar(folder, split=False, as_json=False):
    folder.mkdir(parents=True, exist_ok=True)

    def add(archive, name, content):
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))

    for part in ("train", "val", "test"):
        path = folder / f"{part if split else 'shard'}-00000{'' if split else part}.tar"
        with tarfile.open(path, "w") as archive:
            for i, c, _, patient in (row for row in rows() if row[2] == part):
                add(archive, f"x/{i:04d}.png", png(i))
                if as_json:
                    content = json.dumps({"label": NAMES[c], "patient": patient}).encode()
                    add(archive, f"x/{i:04d}.json", content)
                else:
                    add(archive, f"x/{i:04d}.cls", str(c).encode())
    return folder / "*.tar"


WRITERS = {"csv": write_csv, "parquet": write_parquet, "saved": write_saved, "tar": write_tar}
writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def images_of(*parts):
    return sorted(
        (bytes(image), label)
        for part in parts
        for image, label in zip(part.pixels.numpy(), part.labels.tolist())
    )


def expected(*splits):
    return sorted((pixels(i).tobytes(), c) for i, c, part, _ in rows() if part in splits)


@writers
def test_a_table_without_splits_is_split(tmp_path, write):
    splits = load_data(Data(files=write(tmp_path / "d")))
    assert images_of(splits.train, splits.validation, splits.test()) == expected(
        "train", "val", "test"
    )
    assert splits.classes == (NAMES if write is not write_tar else ("0", "1", "2"))
    assert splits.size == (6, 5)


@writers
def test_splits_of_a_table_are_used(tmp_path, write):
    data = Data(files=write(tmp_path / "d", split=True))
    splits = load_data(data)
    assert images_of(splits.train) == expected("train")
    assert images_of(splits.validation) == expected("val")
    assert images_of(splits.test()) == expected("test")
    assert data_fingerprint(data).images == {"train": 27, "validation": 9}


@writers
def test_the_fingerprint_survives_a_move_and_a_new_time(tmp_path, write):
    files = write(tmp_path / "d")
    before = data_fingerprint(Data(files=files)).fingerprint
    (tmp_path / "d").rename(tmp_path / "e")
    for path in (tmp_path / "e").rglob("*"):
        os.utime(path, (0, 0))
    moved = tmp_path / "e" / files.relative_to(tmp_path / "d")
    assert data_fingerprint(Data(files=moved)).fingerprint == before
    assert data_fingerprint(Data(files=moved, seed=1)).fingerprint != before


def test_usual_and_named_columns_are_found(tmp_path):
    path = write_csv(tmp_path, label=lambda c: c, delimiter=";")
    plain = load_data(Data(files=path))
    assert plain.classes == ("0", "1", "2")
    path.write_text(path.read_text().replace("path;label", "Where;kind"))
    with pytest.raises(ValueError, match="has no column of images .*Where, kind, patient; name it"):
        load_data(Data(files=path))
    data = Data(files=path, columns={"image": "Where", "label": "kind"}, classes=NAMES)
    assert load_data(data).classes == NAMES
    assert images_of(load_data(data).train) == images_of(plain.train)


def test_labels_in_json_and_images_as_bytes_or_paths(tmp_path):
    splits = load_data(Data(files=write_tar(tmp_path / "tar", as_json=True)))
    assert splits.classes == NAMES
    write_csv(tmp_path)
    for name, column in (
        ("bytes.parquet", arrow_table(rows(), names=None, bytes_only=True)["image"]),
        ("paths.parquet", pa.array([f"images/{i}.png" for i, *_ in rows()])),
    ):
        labels = pa.array([NAMES[c] for _, c, *_ in rows()])
        parquet.write_table(pa.table({"image": column, "label": labels}), tmp_path / name)
        splits = load_data(Data(files=tmp_path / name))
        assert splits.classes == NAMES and len(splits.train) == 29


# groups


def groups_in(part, of):
    return {of[bytes(image)] for image in part.pixels.numpy()}


@pytest.mark.parametrize("write", [write_csv, write_parquet, write_saved], ids=["csv", "pq", "hf"])
@pytest.mark.parametrize("seed", range(3))
def test_no_group_is_in_two_splits(tmp_path, write, seed):
    splits = load_data(Data(files=write(tmp_path / "d"), group_by="patient", seed=seed))
    of = {pixels(i).tobytes(): patient for i, _, _, patient in rows()}
    parts = (splits.train, splits.validation, splits.test())
    found = [groups_in(part, of) for part in parts]
    assert sum(map(len, found)) == len(set().union(*found)) == 15
    assert all(set(part.labels.tolist()) == {0, 1, 2} for part in parts)


def test_groups_in_file_names_and_in_json(tmp_path):
    for label, name in enumerate(NAMES):
        (tmp_path / "f" / name).mkdir(parents=True)
        for i in range(24):
            (tmp_path / "f" / name / f"slide{i // 4}_{i}.png").write_bytes(png(24 * label + i))
    data = Data(folder=tmp_path / "f", group_by=r"(slide\d+)_")
    splits = load_data(data)
    of = {pixels(i).tobytes(): i % 24 // 4 for i in range(72)}
    found = [groups_in(part, of) for part in (splits.train, splits.validation, splits.test())]
    assert sum(map(len, found)) == 6 and len(set().union(*found)) == 6
    assert data_fingerprint(data) != data_fingerprint(Data(folder=tmp_path / "f"))
    files = write_tar(tmp_path / "tar", as_json=True)
    splits = load_data(Data(files=files, group_by="patient"))
    of = {pixels(i).tobytes(): patient for i, _, _, patient in rows()}
    assert not groups_in(splits.train, of) & groups_in(splits.validation, of)


@pytest.mark.parametrize(
    "group_by,message",
    [
        ("label", "holds no image of|splits need a group each|whole groups"),
        ("one", r"makes 1 group of the images \(all\), and 3 splits need a group each"),
        ("nothing", r"is not a column \(path, label, patient, one\) and not a pattern with"),
        ("(a", "is not a regular expression"),
        ("(a)(b)", "has 2 groups in brackets; it needs one"),
        (r"(\d\d)\.png", r"finds no group in 10 of 45 file names, such as images/0.png"),
    ],
)
def test_groups_that_cannot_be_are_refused(tmp_path, group_by, message):
    path = write_csv(tmp_path)
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([f"{first},one", *(f"{line},all" for line in rest)]))
    with pytest.raises(ValueError, match=message):
        load_data(Data(files=path, group_by=group_by))


def test_a_group_in_two_official_splits_is_refused(tmp_path):
    path = write_csv(tmp_path, split=True)
    load_data(Data(files=path, group_by="patient"))
    path.write_text(path.read_text().replace("p9", "p5"))
    with pytest.raises(
        ValueError, match="the training and the .* images share 1 group of data.group_by"
    ):
        load_data(Data(files=path, group_by="patient"))
    path.write_text(path.read_text().replace(",p5,val", ",p9,val").replace("p12", "p0"))
    splits = load_data(Data(files=path, group_by="patient"))
    with pytest.raises(
        ValueError,
        match="training and the test images share 1 group of data.group_by, such as 'p0'",
    ):
        splits.test()


# what is refused


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda text: "", "has no content; it needs a header such as path,label"),
        (lambda text: "path,label\n", "has a header and no rows"),
        (lambda text: text.replace("label", "colour"), "has no column of labels"),
        (lambda text: text.replace("images/3.png,dog", "images/3.png,"), "in 'label', first in ro"),
        (
            lambda text: text.replace("images/3.png,dog,p1", "images/3.png,dog"),
            "row 4 below .* 2 v",
        ),
        (
            lambda text: text.replace("images/3.", "images/333."),
            "1 of 45 files .* the first is .*333",
        ),
        (lambda text: text.replace("dog", "cat").replace("owl", "cat"), "has the one class 'cat'"),
    ],
)
def test_a_csv_table_that_cannot_be_used_is_refused(tmp_path, change, message):
    path = write_csv(tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        load_data(Data(files=path))


def test_a_csv_that_is_not_text_or_names_strange_splits_is_refused(tmp_path):
    path = write_csv(tmp_path, split=True)
    text = path.read_text()
    path.write_text(text.replace("val", "somewhere"))
    with pytest.raises(ValueError, match="names the split 'somewhere'; splits are train"):
        load_data(Data(files=path))
    path.write_text(text.replace("train", "val"))
    with pytest.raises(ValueError, match="has no training image .*call the split"):
        load_data(Data(files=path))
    path.write_bytes(b"path,label\n\xff\xfe\n")
    with pytest.raises(ValueError, match="is not a CSV table in UTF-8"):
        load_data(Data(files=path))


def test_arrow_files_that_cannot_be_used_are_refused(tmp_path):
    def refused(message, table=None):
        if table is not None:
            parquet.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=message):
            load_data(Data(files=tmp_path / "a.parquet"))

    (tmp_path / "a.parquet").write_bytes(b"PAR1 torn")
    refused("is not a Parquet file")
    table = arrow_table(rows())
    refused("has no column of labels", table.drop_columns(["label"]))
    refused("has no row", table.slice(0, 0))
    pixels_column = pa.array([[1, 2]] * 45)
    refused("holds list<.*it must hold image", table.set_column(0, "image", pixels_column))
    refused(
        "1 row without a label, first in row 0",
        table.set_column(1, "label", pa.array([None, *table["label"].to_pylist()[1:]], pa.int64())),
    )
    refused("type float64, such as 0.5", table.set_column(1, "label", pa.array([0.5] * 45)))
    refused(
        "a label of .* is 7, beside 3 class names",
        table.set_column(1, "label", pa.array([7] * 45)),
    )
    saved = write_saved(tmp_path / "s")
    (saved / "data-00000-of-00002.arrow").write_bytes(b"torn")
    with pytest.raises(ValueError, match="is not an Arrow file .*save the dataset again"):
        load_data(Data(files=saved))
    (saved / "state.json").unlink()
    with pytest.raises(ValueError, match="state.json cannot be read"):
        load_data(Data(files=saved))


def test_shards_that_cannot_be_used_are_refused(tmp_path):
    def shard(entries, mode="w"):
        path = tmp_path / "s.tar"
        with tarfile.open(path, mode) as archive:
            for name, content in entries:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return path

    for entries, mode, message in (
        ([("a.png", png(0))], "w", "the sample 'a' in .* has no label"),
        ([("a.cls", b"1")], "w", "the sample 'a' in .* has no image"),
        ([("a.png", png(0)), ("a.json", b"[1]")], "w", "a.json in .* is not a JSON object"),
        ([("a.png", png(0)), ("a.json", b"{")], "w", "a.json in .* is not JSON"),
        ([("a.png", png(0)), ("a.cls", b"1")], "w:gz", "is not an uncompressed tar file"),
        ([], "w", "holds no sample"),
    ):
        with pytest.raises(ValueError, match=message):
            load_data(Data(files=shard(entries, mode)))
    path = shard([("a.cls", b"0"), ("a.png", png(0))])
    path.write_bytes(path.read_bytes()[:1570])
    with pytest.raises(ValueError, match="ends within|is not an uncompressed tar file"):
        load_data(Data(files=path))
    with pytest.raises(ValueError, match=r"no file has a name like .*\*.tar"):
        load_data(Data(files=tmp_path / "none" / "*.tar"))


def test_an_unreadable_image_is_named_by_its_row(tmp_path):
    table = arrow_table(rows())
    images = table["image"].to_pylist()
    images[5]["bytes"] = b"no image"
    column = pa.array(images, table.schema.field("image").type)
    parquet.write_table(table.set_column(0, "image", column), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="images cannot be read.*row 5 of .*a.parquet"):
        load_data(Data(files=tmp_path / "a.parquet"))
        load_data(Data(files=tmp_path / "a.parquet")).test()
