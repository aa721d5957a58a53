"""Images of a running program as the data of a study: stored in its directory, where workers map
them and `resume` finds them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from studies.config import Study
from studies.journal.directory import STUDY, require_new_place
from trainers.settings import Data

ARRAYS = "data"  # the folder in a study's directory
ArrayData = tuple[Any, Any] | Mapping[str, Any]
"""(images, labels), or a mapping with train_images, train_labels and so on."""


@contextmanager
def stored_in(
    directory: Path, study: Study, arrays: ArrayData | None, classes: Sequence[str] | None
) -> Iterator[Study]:
    """The study with `arrays` as its data, stored in its directory; None: the study itself. What
    was stored is removed where the study does not begin.

    Raises as `require_new_place`, and ValueError for arrays that cannot be trained on.
    """
    if arrays is None:
        yield study
        return
    path = require_new_place(directory)
    try:
        yield _on(study, arrays, path / ARRAYS, classes)
    except BaseException:
        if not (path / STUDY).exists():
            shutil.rmtree(path / ARRAYS, ignore_errors=True)
            with suppress(OSError):  # it holds something else, or is not there
                path.rmdir()
        raise


@contextmanager
def stored_meanwhile(
    study: Study, arrays: ArrayData | None, classes: Sequence[str] | None
) -> Iterator[Study]:
    """The study with `arrays` as its data, stored in a folder that is removed afterwards."""
    if arrays is None:
        yield study
        return
    with tempfile.TemporaryDirectory(prefix="equisearch-") as folder:
        yield _on(study, arrays, Path(folder) / ARRAYS, classes)


def _on(study: Study, arrays: ArrayData, folder: Path, classes: Sequence[str] | None) -> Study:
    from trainers.data.formats.storing import store_arrays

    store_arrays(arrays, folder, classes, study.data.task)
    settings = study.data.model_dump(exclude={"name", "folder", "files", "root", "download"})
    return study.model_copy(update={"data": Data(**settings, files=folder)})
