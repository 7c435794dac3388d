from __future__ import annotations

import io
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ray.data.extensions import ArrowTensorArray

from pipeline.arrays import UInt8Array
from pipeline.artifacts.storage import Storage
from pipeline.contract import Preparation
from pipeline.data.plan import Plan
from pipeline.data.readers import table_streams
from pipeline.data.readers.image_folder import image_files, open_image_folder
from pipeline.data.readers.rows import RowBatch, Rows
from pipeline.data.readers.table_streams import TableFile, open_table_file
from pipeline.data.readers.tables import TableReader, open_table
from pipeline.errors import DataError
from tests.support.sources import write_parquet

SHAPE = (5, 4)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8)
SIZE = {"height": "5", "width": "4"}


def png(image: UInt8Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def read(folder: Path, image: pa.Array, begin: int = 0, end: int = 6, **columns: Any) -> RowBatch:
    table = pa.table({"image": image, **columns}).replace_schema_metadata(SIZE)
    pq.write_table(table, folder / "images.parquet", row_group_size=4)
    reader = open_file(folder)
    assert reader.shape == SHAPE
    return Rows((reader,)).read(begin, end)


def open_file(folder: Path, **options: Any) -> TableReader:
    reader = open_table(Storage(str(folder)), "images.parquet", **options)
    assert reader
    return reader


FORMS = {
    "fixed-size binary": pa.array([image.tobytes() for image in IMAGES], pa.binary(20)),
    "binary": pa.array([image.tobytes() for image in IMAGES]),
    "PNG": pa.array([png(image) for image in IMAGES]),
    "PNG of Hugging Face": pa.array([{"bytes": png(image), "path": "a"} for image in IMAGES]),
    "lists": pa.array([image.ravel().tolist() for image in IMAGES]),
    "lists of bytes": pa.array([image.ravel().tolist() for image in IMAGES], pa.list_(pa.uint8())),
    "lists of lists": pa.array(IMAGES.tolist()),
    "lists of floats": pa.array([image.ravel().astype(float).tolist() for image in IMAGES]),
    "fixed-size lists": pa.FixedSizeListArray.from_arrays(pa.array(IMAGES.ravel()), 20),
    "Arrow's tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES),
    "Ray's tensors": ArrowTensorArray.from_numpy(IMAGES),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_column_may_have_many_forms(tmp_path: Path, form: str) -> None:
    batch = read(tmp_path, FORMS[form], 1, 6)
    np.testing.assert_array_equal(batch.images, IMAGES[1:])
    np.testing.assert_array_equal(batch.ids, np.arange(1, 6))
    assert batch.rejects == ()


@pytest.mark.parametrize("write", [pyarrow.feather.write_feather, write_stream])
def test_arrow_ipc_is_read_as_parquet_is(
    tmp_path: Path, write: Callable[[pa.Table, Path], None]
) -> None:
    for form, column in FORMS.items():
        write(
            pa.table({"image": column}).replace_schema_metadata(SIZE), tmp_path / "images.parquet"
        )
        batch = open_file(tmp_path).read(2, 6, 0, ())
        np.testing.assert_array_equal(batch.images, IMAGES[2:], err_msg=form)


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1)])
@pytest.mark.parametrize("channel", [None, 1, 3])
def test_a_tensor_is_read_as_numpy_showed_it(
    tmp_path: Path, axes: tuple[int, ...], channel: int | None
) -> None:
    shown = IMAGES.transpose(axes)
    array = shown if channel is None else np.expand_dims(shown, channel)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    pq.write_table(pa.table({"image": tensors}), tmp_path / "images.parquet")
    np.testing.assert_array_equal(open_file(tmp_path).read(0, 6, 0, ()).images, shown)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_colour_is_converted_as_asked_or_refused(tmp_path: Path, axes: tuple[int, ...]) -> None:
    colour = np.random.default_rng(1).integers(0, 256, (6, *SHAPE, 3), np.uint8)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(colour.transpose(axes))
    pq.write_table(pa.table({"image": tensors}), tmp_path / "images.parquet")
    refused = open_file(tmp_path).read(0, 6, 0, ())
    assert [row.id for row in refused.rejects] == list(range(6))
    assert "in colour. Make it grey, or build the dataset" in refused.rejects[0].reason
    grey = open_file(tmp_path, preparation=Preparation(fit="none", invert="never", grey=True))
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in colour]
    np.testing.assert_array_equal(grey.read(0, 6, 0, ()).images, expected)


def test_types_that_carry_no_code_may_stand_beside_the_images(tmp_path: Path) -> None:
    keys = pa.array([uuid.uuid4().bytes for _ in IMAGES], pa.uuid())
    read(tmp_path, FORMS["binary"], key=keys)
    assert open_file(tmp_path).read(1, 3, 0, ["key"]).columns["key"].combine_chunks() == keys[1:3]


def test_paths_without_files_are_refused(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    with pytest.raises(DataError, match="holds paths of image files, but not the files"):
        read(tmp_path, pa.array([{"bytes": None, "path": "a.png"}] * 6, kind))


@pytest.mark.parametrize("form", FORMS)
def test_ranges_are_read_in_any_order(tmp_path: Path, form: str) -> None:
    read(tmp_path, FORMS[form])
    reader = open_file(tmp_path)
    for begin, end in ((0, 1), (1, 2), (2, 5), (5, 6), (3, 6), (0, 6), (1, 3)):
        batch = Rows((reader,)).read(begin, end)
        np.testing.assert_array_equal(batch.images, IMAGES[begin:end])
        np.testing.assert_array_equal(batch.ids, np.arange(begin, end))


def test_a_range_after_a_damaged_one_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.readers.table_streams.BATCH_ROWS", 1)
    column = FORMS["fixed-size binary"]
    table = pa.table({"image": column}).replace_schema_metadata(SIZE)
    path = tmp_path / "images.parquet"
    options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(table, path, row_group_size=2, write_page_checksum=True, **options)
    data = bytearray(path.read_bytes())
    data[data.index(IMAGES[2].tobytes())] ^= 1
    path.write_bytes(data)
    reader = open_file(tmp_path)
    for begin in (0, 4, 1, 5):
        np.testing.assert_array_equal(
            Rows((reader,)).read(begin, begin + 1).images[0], IMAGES[begin]
        )
        with pytest.raises(DataError, match="could not be read as a table"):
            Rows((reader,)).read(2, 4)


def test_a_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    read(tmp_path, FORMS["binary"])
    reader = open_file(tmp_path)
    read(tmp_path, FORMS["binary"][:2], 0, 2)
    with pytest.raises(DataError, match=r"images.parquet was changed while it was read"):
        Rows((reader,)).read(4, 6)


READ_ALL_RANGES = """
import sys, pyarrow
from pipeline.artifacts.storage import Storage
from pipeline.data.readers.tables import open_table
reader = open_table(Storage(sys.argv[1]), "images.parquet")
sums = [reader.read(begin, begin + 1000, 0, ()).images.sum() for begin in range(0, 100_000, 1000)]
print(sum(sums), pyarrow.default_memory_pool().max_memory() >> 20)
"""


def test_mixed_shards_of_many_files_open_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    names = [write_parquet(tmp_path / f"{n:02}.parquet", 20, n).name for n in range(16)]
    readers = [reader for name in names if (reader := open_table(storage, name))]
    opened = list[object]()

    def count(*args: Any) -> TableFile:
        opened.append(args)
        return open_table_file(*args)

    monkeypatch.setattr(table_streams, "open_table_file", count)
    plan = Plan(Rows(tuple(readers)), 0, 320, 16, 0)
    ids = [plan.read(number).ids for number in range(plan.num_shards)]
    np.testing.assert_array_equal(np.sort(np.concatenate(ids)), np.arange(320))
    assert len(opened) == 16


def test_a_large_row_group_is_never_whole_in_memory(tmp_path: Path) -> None:
    """Measure in a new process: the peak of this one is that of all tests."""
    pixels = np.random.default_rng(0).integers(0, 256, 100_000 * 784, np.uint8)
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(784), 100_000, [None, pa.py_buffer(pixels)]
    )
    pq.write_table(pa.table({"image": column}), tmp_path / "images.parquet", use_dictionary=False)
    command = [sys.executable, "-c", READ_ALL_RANGES, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    total, peak_mib = map(int, result.stdout.split())
    assert total == pixels.sum(dtype=np.int64)
    # The row group has 75 MiB.
    assert peak_mib < 40


@pytest.mark.parametrize(
    ("column", "reasons"),
    [
        (
            [png(IMAGES[0]), b"GIF", None, png(IMAGES[3])[:40], png(IMAGES[4]), png(IMAGES[5, :3])],
            {1: "3 bytes", 2: "null", 3: "damaged", 5: "3 x 4, but 5 x 4 is expected"},
        ),
        (
            [IMAGES[0].ravel().tolist(), [1] * 19, None, [256] * 20, [-1] * 20, [0.5] * 20],
            {1: "not 20 pixels", 2: "null", 3: "0 to 255", 4: "0 to 255", 5: "0 to 255"},
        ),
        (
            [IMAGES[0].tolist(), [[1] * 4] * 4, [[1] * 3] * 5, [], None, IMAGES[5].tolist()],
            {1: "not 5 x 4", 2: "not 5 x 4", 3: "not 5 x 4", 4: "null"},
        ),
    ],
)
def test_each_invalid_row_is_rejected_with_its_reason(
    tmp_path: Path, column: list[Any], reasons: dict[int, str]
) -> None:
    batch = read(tmp_path, pa.array(column))
    assert {row.id for row in batch.rejects} == set(reasons)
    for row in batch.rejects:
        assert reasons[row.id] in row.reason
    np.testing.assert_array_equal(batch.images, IMAGES[batch.ids])


def test_a_row_with_a_null_label_is_rejected_and_ids_of_a_dataset_are_positions(
    tmp_path: Path,
) -> None:
    ids = pa.array([10, 10, None, 13, 14, 15], pa.int64())
    read(tmp_path, FORMS["fixed-size binary"], label=[0, None, 2, 3, 4, 5], id=ids)
    batch = open_file(tmp_path).with_classes((0, 2, 3, 4, 5)).read(0, 6, 100, ())
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2, 3, 4]
    assert batch.ids.tolist() == [100, 102, 103, 104, 105]
    assert [row.reason for row in batch.rejects] == ["the label is null"]


def test_a_row_with_a_null_id_is_rejected_if_ids_are_kept(tmp_path: Path) -> None:
    ids = pa.array([10, 11, None, 13, 14, 15], pa.int64())
    batch = read(tmp_path, FORMS["fixed-size binary"], id=ids)
    assert batch.ids.tolist() == [10, 11, 13, 14, 15]
    assert [row.reason for row in batch.rejects] == ["the id is null"]


def test_image_files_are_rows_in_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").write_bytes(png(IMAGES[1]))
    (tmp_path / "a.PNG").write_bytes(png(IMAGES[0]))
    (tmp_path / "c.png").write_bytes(png(IMAGES[2, :3]))
    (tmp_path / "d.jpg").write_bytes(b"none")
    (tmp_path / "notes.txt").write_bytes(b"")
    storage = Storage(str(tmp_path))
    rows = Rows(tuple(open_image_folder(storage, image_files(storage.files()))))
    batch = rows.read(0, rows.num_rows, ["path"])
    np.testing.assert_array_equal(batch.images, IMAGES[:2])
    assert batch.columns["path"].to_pylist() == ["a.PNG", "b/1.png"]
    assert [row.id for row in batch.rejects] == [2, 3]
    assert batch.rejects[1].reason == "d.jpg: It is neither a PNG nor a JPEG."


def test_ids_continue_from_one_reader_to_the_next(tmp_path: Path) -> None:
    read(tmp_path, FORMS["lists"])
    reader = open_file(tmp_path)
    batch = Rows((reader, reader, reader), first_id=100).read(4, 14)
    assert batch.ids.tolist() == list(range(104, 114))
    expected = np.concatenate([IMAGES] * 3)[4:14]
    np.testing.assert_array_equal(batch.images, expected)


def test_an_image_file_removed_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(IMAGES[0]))
    rows = Rows(tuple(open_image_folder(Storage(str(tmp_path)), ["a.png"])))
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="was changed while it was read"):
        rows.read(0, 1)


def test_no_shard_is_written_from_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    class ChangedReader(TableReader):
        """A reader whose file is replaced as soon as it was read."""

        def read(self, *args: Any) -> RowBatch:
            batch = super().read(*args)
            (tmp_path / "images.parquet").write_bytes(b"other")
            return batch

    read(tmp_path, FORMS["lists"])
    plan = Plan(Rows((ChangedReader(**vars(open_file(tmp_path))),)), 0, 6, rows_per_shard=6)
    with pytest.raises(DataError, match=r"images.parquet was changed while it was read"):
        plan.read(0)
