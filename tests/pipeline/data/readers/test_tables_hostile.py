"""Tables that are damaged, absurd or malicious."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.readers.rows import Rows
from pipeline.errors import DataError
from tests.pipeline.data.readers.test_tables import FORMS, IMAGES, SIZE, open_file, read


class Gadget(pa.ExtensionType):  # type: ignore[misc]
    """An extension type that stands for those that run code when their values are read."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "tests.gadget")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, data: bytes) -> Gadget:
        return cls()


@pytest.mark.parametrize("nested", [False, True])
def test_extension_types_other_than_tensors_are_refused(tmp_path: Path, nested: bool) -> None:
    pa.register_extension_type(Gadget())
    try:
        column = pa.ExtensionArray.from_storage(Gadget(), pa.array([b"x"] * 6))
        if nested:
            column = pa.StructArray.from_arrays([column], ["inner"])
        with pytest.raises(DataError, match=r"images.parquet: column `other` is of the extension"):
            read(tmp_path, FORMS["fixed-size binary"], other=column)
    finally:
        pa.unregister_extension_type("tests.gadget")


def test_pickled_objects_of_ray_are_refused(tmp_path: Path) -> None:
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    column = ArrowPythonObjectArray.from_objects([object()] * 6)
    with pytest.raises(DataError, match="arrow_pickled_object"):
        read(tmp_path, FORMS["fixed-size binary"], other=column)


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_refused_or_read_correctly(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    table = pa.table({"image": FORMS["fixed-size binary"]}).replace_schema_metadata(SIZE)
    path = folder / "images.parquet"
    pq.write_table(table, path, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    position %= len(data)
    if cut:
        del data[position:]
    else:
        data[position] ^= flip
    path.write_bytes(data)
    # Any other exception fails the test.
    with suppress(DataError):
        rows = Rows((open_file(folder),))
        np.testing.assert_array_equal(rows.read(0, rows.num_rows).images, IMAGES)


@pytest.mark.parametrize(
    "class_names", ["no json", "5", '[["a"]]', '{"0": "cat", "1": "dog"}', "[" * 100_000]
)
def test_invalid_class_names_are_refused(tmp_path: Path, class_names: str) -> None:
    metadata = SIZE | {"class_names": class_names}
    table = pa.table({"image": FORMS["binary"]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "images.parquet")
    with pytest.raises(DataError, match=r"images.parquet"):
        open_file(tmp_path)


@pytest.mark.parametrize(
    ("first", "size"),
    [
        ([], {}),
        ([[]], {}),
        ([None, [1, 2]], {}),
        (b"", {}),
        (b"\x89PNG\r\n\x1a\n and no more", {}),
        (bytes(20), {"height": "-5", "width": "-4"}),
        (bytes(20), {"height": "five", "width": "4"}),
    ],
)
def test_a_first_image_without_a_valid_size_is_refused(
    tmp_path: Path, first: Any, size: dict[str, str]
) -> None:
    table = pa.table({"image": [first]}).replace_schema_metadata(size)
    pq.write_table(table, tmp_path / "images.parquet")
    with pytest.raises(DataError, match=r"images.parquet"):
        open_file(tmp_path)


def test_a_repeated_column_is_refused(tmp_path: Path) -> None:
    column = FORMS["binary"]
    pq.write_table(
        pa.Table.from_arrays([column, column], ["image", "image"]), tmp_path / "images.parquet"
    )
    with pytest.raises(DataError, match="several columns `image`"):
        open_file(tmp_path)


def test_a_row_with_an_absurd_number_is_rejected(tmp_path: Path) -> None:
    pixels = [image.ravel().tolist() for image in IMAGES]
    pixels[1][3] = 2**60
    labels = pa.array([0, 1, 2, 2**63, 4, 5], pa.uint64())
    read(tmp_path, pa.array(pixels, pa.list_(pa.int64())), label=labels)
    batch = open_file(tmp_path).with_classes((0, 1, 2, 4, 5)).read(0, 6, 0, ())
    assert [(row.id, row.reason) for row in batch.rejects] == [
        (1, "a pixel is not an integer from 0 to 255"),
        (3, f"the label {-(2**63)} is not one of 0, 1, 2, 4, 5"),
    ]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 2, 3, 4]


@given(position=st.integers(0, 10_000), flip=st.integers(1, 255), stream=st.booleans())
def test_damaged_arrow_ipc_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int, stream: bool
) -> None:
    """IPC has no checksums, so pixels may differ; but no offset may point outside of a buffer."""
    folder = tmp_path_factory.mktemp("damaged")
    table = pa.table({"image": FORMS["binary"], "label": [0, 1] * 3}).replace_schema_metadata(SIZE)
    path = folder / "images.parquet"
    opener = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, opener(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= flip
    path.write_bytes(data)
    with suppress(DataError):
        reader = open_file(folder)
        reader.count_labels()
        batch = Rows((reader,)).read(0, reader.entry.rows or 0)
        assert len(batch.ids) + len(batch.rejects) == reader.entry.rows


def test_a_column_that_holds_a_large_arrow_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    """A record batch is in memory at a time."""
    before = pa.total_allocated_bytes()
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(784), 1000, [None, pa.py_buffer(bytes(784_000))]
    )
    batch = pa.record_batch({"image": pixels})
    for opener in (pa.ipc.new_stream, pa.ipc.new_file):
        path = tmp_path / "images.parquet"
        with pa.OSFile(str(path), "wb") as file, opener(file, batch.schema) as writer:
            for _ in range(100):
                writer.write_batch(batch)
        reader = open_file(tmp_path)
        for begin in (0, 99_000, 50_500, 50_700):
            assert len(reader.read(begin, begin + 100, 0, ()).ids) == 100
            assert pa.total_allocated_bytes() - before < 16 << 20
