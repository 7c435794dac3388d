from __future__ import annotations

import gzip
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.artifacts.storage import Storage
from pipeline.artifacts.threads import parallel_map
from pipeline.data.readers import idx_format
from pipeline.data.readers.arrays import ArrayReader, open_array_file, open_arrays
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


def open_file(path: Path) -> ArrayReader:
    return open_arrays(open_array_file(Storage(str(path.parent)), path.name), None)


def test_a_file_stays_open_from_one_range_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx_format.encode(IMAGES)))
    storage = CountingStorage(str(tmp_path))
    rows = Rows((open_arrays(open_array_file(storage, "images.gz"), None),))
    storage.num_opened = 0
    for start in (*range(6), 2):
        np.testing.assert_array_equal(rows.read(start, start + 1).images, IMAGES[start : start + 1])
    assert storage.num_opened == 1


READ = """
import sys
from pipeline.artifacts.storage import Storage
from pipeline.data.readers.arrays import open_array_file

open_array_file(Storage(sys.argv[1]), "images.gz").read([(0, 1)])
"""


def test_files_that_stay_open_are_closed_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx_format.encode(IMAGES)))
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", READ, str(tmp_path)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (completed.returncode, completed.stderr) == (0, "")


def test_a_replaced_or_removed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(idx_format.encode(IMAGES))
    rows = Rows((open_file(path),))
    (tmp_path / "other").write_bytes(idx_format.encode(IMAGES[::-1]))
    (tmp_path / "other").replace(path)
    with pytest.raises(DataError, match=r"images was changed while it was read"):
        rows.read(0, 1)
    path.unlink()
    with pytest.raises(DataError, match=r"images was changed while it was read"):
        rows.read(0, 1)


def test_a_gzipped_file_that_changes_before_it_is_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx_format.encode(IMAGES)))
    rows = Rows((open_file(path),))
    with path.open("r+b") as file:
        file.truncate(20)
    with pytest.raises(DataError, match=r"images.gz was changed while it was read"):
        rows.read(2, 3)


@pytest.mark.parametrize("suffix", [".npy", ".npy.gz", ".npz", "-idx3-ubyte", "-idx3-ubyte.gz"])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4"])
def test_arrays_of_any_form_and_type_are_read_alike(
    tmp_path: Path, suffix: str, dtype: str
) -> None:
    file = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(file, images=IMAGES.astype(dtype))
    elif "idx" in suffix:
        file.write(idx_format.encode(IMAGES))
    else:
        np.save(file, IMAGES.astype(dtype))
    content = gzip.compress(file.getvalue()) if suffix.endswith("gz") else file.getvalue()
    (tmp_path / f"x{suffix}").write_bytes(content)
    member = "images" if suffix == ".npz" else ""
    reader = open_arrays(open_array_file(Storage(str(tmp_path)), f"x{suffix}", member), None)
    np.testing.assert_array_equal(reader.read(4, 6, 0, ()).images, IMAGES[4:])
    np.testing.assert_array_equal(reader.read(1, 3, 0, ()).images, IMAGES[1:3])


@pytest.mark.parametrize("shape", [(6, 1, 5, 4), (6, 5, 4, 1), (6, 5, 4)])
def test_an_axis_of_1_is_dropped(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", IMAGES.reshape(shape))
    np.testing.assert_array_equal(open_file(tmp_path / "x.npy").read(0, 6, 0, ()).images, IMAGES)


def test_pixels_that_are_no_integers_from_0_to_255_are_rejected(tmp_path: Path) -> None:
    values = IMAGES.astype(np.float64)
    values[1, 2, 3], values[3, 0, 0], values[4, 0, 0] = 0.5, 256, np.nan
    np.save(tmp_path / "x.npy", values)
    batch = open_file(tmp_path / "x.npy").read(0, 6, 0, ())
    assert batch.ids.tolist() == [0, 2, 5]
    assert {row.reason for row in batch.rejects} == {"a pixel is not an integer from 0 to 255"}


def test_pixels_from_0_to_1_are_refused_with_what_to_do(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES / 255)
    with pytest.raises(DataError, match=r"pixels from 0 to 1.*255 \* images"):
        open_file(tmp_path / "x.npy")


def test_files_are_read_by_many_threads(tmp_path: Path) -> None:
    """More than stay open, so that threads close those of each other."""
    for number in range(8):
        np.save(tmp_path / f"{number}.npy", IMAGES + number)
    readers = [open_file(tmp_path / f"{number}.npy") for number in range(8)] * 50
    batches = parallel_map(lambda reader: reader.read(2, 5, 0, ()), readers)
    for index, batch in enumerate(batches):
        np.testing.assert_array_equal(batch.images, (IMAGES + index % 8)[2:5])


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 5, 4), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 5, 4.5), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': " + "(" * 200,
        "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (6, 5, 4), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (6, 5, 4), }",
        "{'descr': '|u1'",
        "'''",
        "\xff",
        "",
    ],
)
def test_a_hostile_header_of_numpy_is_refused(tmp_path: Path, header: str) -> None:
    content = header.encode("latin-1")
    start = b"\x93NUMPY\1\0" + len(content).to_bytes(2, "little")
    (tmp_path / "x.npy").write_bytes(start + content + bytes(120))
    with pytest.raises(DataError, match=r"x.npy"):
        open_file(tmp_path / "x.npy")


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=IMAGES)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    # Bit 0 of the flags, in the local header and in the directory.
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        open_array_file(Storage(str(tmp_path)), "x.npz", "images")
