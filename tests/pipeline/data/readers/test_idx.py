from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.artifacts.storage import Storage
from pipeline.data.readers import idx_format
from pipeline.data.readers.idx import IdxReader, open_idx
from pipeline.data.readers.rows import Rows
from pipeline.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)


class CountingStorage(Storage):
    """A storage that counts how often a file is opened."""

    num_opened = 0

    @contextmanager
    def open(self, path: str) -> Iterator[pa.NativeFile]:
        self.num_opened += 1
        with super().open(path) as file:
            yield file


def test_a_file_stays_open_from_one_range_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx_format.encode(IMAGES)))
    storage = CountingStorage(str(tmp_path))
    rows = Rows((IdxReader(open_idx(storage, "images.gz", rank=3)),))
    storage.num_opened = 0
    for start in (*range(6), 2):
        np.testing.assert_array_equal(rows.read(start, start + 1).images, IMAGES[start : start + 1])
    assert storage.num_opened == 1


def test_a_replaced_or_removed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(idx_format.encode(IMAGES))
    rows = Rows((IdxReader(open_idx(Storage(str(tmp_path)), path.name, rank=3)),))
    (tmp_path / "other").write_bytes(idx_format.encode(IMAGES[::-1]))
    (tmp_path / "other").replace(path)
    with pytest.raises(DataError, match=r"images was changed while it was read"):
        rows.read(0, 1)
    path.unlink()
    with pytest.raises(DataError, match=r"images was changed while it was read"):
        rows.read(0, 1)


def test_a_gzipped_file_that_changes_while_it_is_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    images = np.random.default_rng(0).integers(0, 256, (3000, 40, 40), np.uint8)
    path.write_bytes(gzip.compress(idx_format.encode(images)))
    rows = Rows((IdxReader(open_idx(Storage(str(tmp_path)), path.name, rank=3)),))
    rows.read(0, 10)
    with path.open("r+b") as file:
        file.truncate(3_000_000)
    with pytest.raises(DataError, match=r"images.gz was changed while it was read"):
        rows.read(2000, 3000)
    path.write_bytes(gzip.compress(idx_format.encode(images)))
    rows = Rows((IdxReader(open_idx(Storage(str(tmp_path)), path.name, rank=3)),))
    np.testing.assert_array_equal(rows.read(2000, 3000).images, images[2000:])
