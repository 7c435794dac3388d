from __future__ import annotations

import gzip
import io
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import arrays
from pipeline.data.readers import idx_format
from pipeline.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
FILE = idx_format.encode(IMAGES)
ZIPPED = gzip.compress(FILE)


def verify(data: bytes, rank: int = 3) -> idx_format.Idx:
    return idx_format.verify(io.BytesIO(data), name="x.idx", rank=rank, compressed_bytes=len(data))


def rows(data: bytes, shape: tuple[int, ...], start: int, stop: int) -> arrays.UInt8Array:
    content = idx_format.content(io.BytesIO(data))
    return idx_format.read_rows(content, name="x.idx", shape=shape, start=start, stop=stop)


def header(*shape: int, kind: int = 8) -> bytes:
    return struct.pack(f">2x2B{len(shape)}I", kind, len(shape), *shape)


@pytest.mark.parametrize("data", [FILE, ZIPPED])
def test_a_range_of_rows_is_read_back_as_written(data: bytes) -> None:
    idx = verify(data)
    assert idx.shape == (2, 3, 4)
    np.testing.assert_array_equal(rows(data, idx.shape, 1, 2), IMAGES[1:])


def test_the_digest_is_of_the_content_and_not_of_the_gzip_around_it() -> None:
    assert verify(FILE) == verify(ZIPPED) == verify(gzip.compress(FILE, 1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with nothing"),
        (b"\0\0", "starts with 0000"),
        (b"\x89PNG" + FILE, "starts with 89504e47"),
        (struct.pack("<I", 0x803) + FILE[4:], "starts with 03080000"),
        (header(2, 3, 4, kind=0x0D) + bytes(24), "type 0x0d"),
        (header(24) + bytes(24), "has 1 axes, but images have 3"),
        (FILE[:10], "ends within its header"),
        (header(0, 3, 4), "is empty"),
        (header(2, 0, 4), "is empty"),
        (FILE[:-1], "holds 23 values, but its header says 24"),
        (header(2**32 - 1, 28, 28) + bytes(100), "holds 100 values"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(100), "holds 100 values"),
        (FILE + b"\0", "continues after the 24 values"),
        (gzip.compress(FILE + b"\0"), "continues after the 24 values"),
        (gzip.compress(FILE[:-1]), "holds 23 values"),
        (gzip.compress(ZIPPED), "starts with 1f8b"),
        (ZIPPED[:-1], "broken or truncated gzip"),
        (ZIPPED[:12], "broken or truncated gzip"),
        (ZIPPED + b"garbage", "broken or truncated gzip"),
        (ZIPPED[:-8] + bytes([ZIPPED[-8] ^ 1]) + ZIPPED[-7:], "broken or truncated gzip"),
        (ZIPPED[:10] + b"\xff" + ZIPPED[11:], "broken or truncated gzip"),
        (gzip.compress(b"") + b"", "starts with nothing"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        verify(data)


def test_labels_given_as_images_are_refused() -> None:
    with pytest.raises(DataError, match="Are images and labels swapped"):
        verify(FILE, rank=1)


def test_a_gzip_bomb_is_refused_in_little_memory() -> None:
    bomb = gzip.compress(header(1 << 8, 1 << 10, 1 << 10) + bytes(1 << 28), 9)
    tracemalloc.start()
    with pytest.raises(DataError, match="gzip bomb"):
        verify(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


@given(st.binary(max_size=64), st.sampled_from([b"", FILE[:4], FILE[:16], ZIPPED[:10]]))
def test_any_bytes_are_read_whole_or_refused(data: bytes, start: bytes) -> None:
    try:
        idx = verify(start + data)
    except DataError:
        return
    assert rows(start + data, idx.shape, 0, idx.shape[0]).shape == idx.shape


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.data())
def test_every_range_of_every_shape_is_read_back(
    count: int, height: int, width: int, data: st.DataObject
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, height, width)).astype(np.uint8)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    content = rows(idx_format.encode(images), images.shape, start, stop)
    np.testing.assert_array_equal(content, images[start:stop])
