"""Files of data and bundles that are pipes or devices, or say other sizes than they have: nothing
is read without end, and one message says what to correct.
"""

import io
import os
import zipfile

import numpy as np
import pytest

from support.bundles import bundle, copied, subject  # noqa: F401  (fixtures)
from trainers.bundles.verify import verify
from trainers.data.datasets import load_data
from trainers.settings import Data


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUISEARCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("place", ["file", "folder", "pattern"])
@pytest.mark.parametrize("name", ["a.npz", "a.csv", "a.tar", "a.parquet"])
def test_a_pipe_or_a_device_is_no_file_of_data(tmp_path, name, place):
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        make(tmp_path / name)
        files = {"file": tmp_path / name, "folder": tmp_path, "pattern": tmp_path / f"*{name[1:]}"}
        with pytest.raises(
            ValueError, match="is a pipe or a device|is not in a format|patterns are for"
        ):
            load_data(Data(files=files[place]))
        (tmp_path / name).unlink()


@pytest.mark.parametrize("named", ["/dev/zero", "x\0y"])
def test_a_table_names_files_alone(tmp_path, named):
    (tmp_path / "a.csv").write_text(f"path,label\n{named},a\n{named},b\n")
    with pytest.raises(ValueError, match="2 of 2 files that .* names are missing or no files"):
        load_data(Data(files=tmp_path / "a.csv"))


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("path,label,label\na.png,a,b\n")
    with pytest.raises(ValueError, match="two columns 'label'"):
        load_data(Data(files=tmp_path / "a.csv"))


def test_a_shape_that_the_file_does_not_hold_takes_no_memory(tmp_path):
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (60, 100000, 100000), }\n"
    labels = io.BytesIO()
    np.save(labels, np.arange(60) % 3)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        archive.writestr("images.npy", head + b"\0" * 99)
        archive.writestr("labels.npy", labels.getvalue())
    with pytest.raises(ValueError, match="is to hold 600000000084 bytes by its shape"):
        load_data(Data(files=tmp_path / "a.npz"))


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "model.pt2", "model.py"])
def test_verify_waits_for_no_pipe(copied, name):
    (copied / name).unlink()
    os.mkfifo(copied / name)
    assert not verify(copied).good
