from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.readers import array_format, idx_format
from pipeline.data.readers.array_format import ArrayInfo
from pipeline.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
FILE = idx_format.encode(IMAGES)
ZIPPED = gzip.compress(FILE, mtime=0)


def verify(data: bytes, member: str = "") -> ArrayInfo:
    file = io.BytesIO(data)
    return array_format.verify(file, name="x.idx", compressed_bytes=len(data), member=member)


def rows(data: bytes, info: ArrayInfo, start: int, stop: int) -> np.ndarray[Any, np.dtype[Any]]:
    content = array_format.content(io.BytesIO(data))
    return array_format.read_rows(content, info, [(start, stop)], name="x.idx")


def npy(array: np.ndarray[Any, np.dtype[Any]], **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(*shape: int, kind: int = 8) -> bytes:
    return struct.pack(f">2x2B{len(shape)}I", kind, len(shape), *shape)


@pytest.mark.parametrize("data", [FILE, ZIPPED, npy(IMAGES)])
def test_a_range_of_rows_is_read_back_as_written(data: bytes) -> None:
    info = verify(data)
    assert info.shape == (2, 3, 4)
    np.testing.assert_array_equal(rows(data, info, 1, 2), IMAGES[1:])


def test_the_digest_is_of_the_content_and_not_of_the_gzip_around_it() -> None:
    assert verify(FILE) == verify(ZIPPED) == verify(gzip.compress(FILE, 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with nothing"),
        (b"\0\0", "starts with 0000"),
        (b"\x89PNG" + FILE, "starts with 89504e47"),
        (struct.pack("<I", 0x803) + FILE[4:], "starts with 03080000"),
        (header(2, 3, 4, kind=0x0A) + bytes(24), "type 0x0a"),
        (header(1, 1, 1, 1, 24) + bytes(24), "has 5 axes"),
        (FILE[:10], "ends within its header"),
        (header(0, 3, 4), "is empty"),
        (header(2, 0, 4), "is empty"),
        (FILE[:-1], "holds 23 bytes of values, but its header says 24"),
        (header(2**32 - 1, 28, 28) + bytes(100), "holds 100 bytes of values"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(100), "holds 100 bytes of values"),
        (FILE + b"\0", "continues after the 24 bytes"),
        (gzip.compress(FILE + b"\0", mtime=0), "continues after the 24 bytes"),
        (gzip.compress(FILE[:-1], mtime=0), "holds 23 bytes of values"),
        (gzip.compress(ZIPPED, mtime=0), "starts with 1f8b"),
        (ZIPPED[:-1], "broken or truncated compressed"),
        (ZIPPED[:12], "broken or truncated compressed"),
        (ZIPPED + b"garbage", "broken or truncated compressed"),
        (ZIPPED[:-8] + bytes([ZIPPED[-8] ^ 1]) + ZIPPED[-7:], "broken or truncated compressed"),
        (ZIPPED[:10] + b"\xff" + ZIPPED[11:], "broken or truncated compressed"),
        (gzip.compress(b"", mtime=0) + b"", "starts with nothing"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        verify(data)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([None, "x"]), "array of object"),
        (np.array(["a", "b"]), "array of <U1"),
        (np.asfortranarray(IMAGES), "Fortran order"),
        (np.zeros((0, 2, 2)), "is empty"),
        (np.float64(1), "is empty"),
    ],
)
def test_a_numpy_array_without_numbers_in_order_is_refused(array: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        verify(npy(array, allow_pickle=True))


@pytest.mark.parametrize("cut", [5, 9, 60, 140])
def test_a_truncated_numpy_array_is_refused(cut: int) -> None:
    with pytest.raises(DataError):
        verify(npy(IMAGES)[:cut])


def test_a_damaged_archive_is_refused() -> None:
    file = io.BytesIO()
    np.savez_compressed(file, images=np.random.default_rng(0).integers(0, 9, 999, np.uint8))
    data = bytearray(file.getvalue())
    data[200] ^= 255
    with pytest.raises(DataError, match="broken or truncated compressed"):
        verify(bytes(data), "images")


def test_a_gzip_bomb_is_refused_in_little_memory() -> None:
    bomb = gzip.compress(header(1 << 8, 1 << 10, 1 << 10) + bytes(1 << 28), 9)
    tracemalloc.start()
    with pytest.raises(DataError, match="looks like a bomb"):
        verify(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


STARTS = [b"", FILE[:4], FILE[:16], ZIPPED[:10], npy(IMAGES)[:8], npy(IMAGES)[:128]]


@given(st.binary(max_size=64), st.sampled_from(STARTS))
def test_any_bytes_are_read_whole_or_refused(data: bytes, start: bytes) -> None:
    try:
        info = verify(start + data)
    except DataError:
        return
    assert rows(start + data, info, 0, info.shape[0]).shape == info.shape


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.data())
def test_every_range_of_every_shape_is_read_back(
    count: int, height: int, width: int, data: st.DataObject
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, height, width)).astype(np.uint8)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    file = idx_format.encode(images)
    content = rows(file, verify(file), start, stop)
    np.testing.assert_array_equal(content, images[start:stop])
