"""Arrays in files: IDX (`idx_format`) and NumPy's `.npy`, gzipped or in a `.npz`, or neither.

No memory is allocated on the word of a header: `verify` reads a file in chunks, and `read_rows`
reads only rows that `verify` has seen to exist.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, cast

import numpy as np

from pipeline.data.readers import idx_format, npy_format
from pipeline.errors import DataError

CHUNK_BYTES = 1 << 20
"""Read at a time."""

BOMB_BYTES = 64 << 20
"""A compressed file that unpacks to less is never called a bomb."""

BOMB_RATIO = 100
"""Bytes per compressed byte. Gzip reaches at most 1032; MNIST's label files have 2."""

BROKEN = (
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
"""The exceptions of gzip and zipfile for files that are damaged, or use what they do not read."""


@dataclass(frozen=True)
class ArrayInfo:
    """A verified array: where its values begin, their dtype and shape, its sha256 without gzip."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    sha256: str


def members(file: BinaryIO) -> list[str]:
    """Return the names of the arrays in a `.npz`, none for other files. The file is rewound."""
    is_zip = file.read(4) == b"PK\3\4"
    file.seek(0)
    if not is_zip:
        return []
    with zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    file.seek(0)
    return names


def content(file: BinaryIO, member: str = "") -> BinaryIO:
    """Return the content of a file that is at its beginning: unpacked, or of a member's array."""
    if member:
        return cast(BinaryIO, zipfile.ZipFile(file).open(f"{member}.npy"))
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not gzipped:
        return file
    # GzipFile reads a few KiB at a time. Unbuffered, each would be a request to an object store.
    buffered = io.BufferedReader(cast(io.RawIOBase, file), CHUNK_BYTES)
    return cast(BinaryIO, gzip.GzipFile(fileobj=buffered))


def verify(
    file: BinaryIO,
    *,
    name: str,
    compressed_bytes: int,
    member: str = "",
    digest: Callable[[], str] | None = None,
) -> ArrayInfo:
    """Read a whole file, chunk by chunk, and return what it holds.

    `name` is for messages; `compressed_bytes` is the size of the file as stored. `digest`, if
    given, returns its sha256, so that a file without compression need not be read here. Raise
    DataError if the file is not exactly one array of numbers.
    """
    try:
        stream = content(file, member)
        start = stream.read(6)
        parse = npy_format.parse if start == npy_format.MAGIC else idx_format.parse
        header, dtype, shape = parse(start, stream, name=name)
        expected = prod(shape) * np.dtype(dtype).itemsize
        if stream is not file and expected > max(BOMB_BYTES, BOMB_RATIO * compressed_bytes):
            raise DataError(
                f"{name} would unpack {compressed_bytes} bytes to {expected}: this looks like a "
                f"bomb (over {BOMB_RATIO}:1). If it is real, unpack it first."
            )
        if digest and stream is file:
            left = max(0, len(header) + expected - compressed_bytes)
            trailing = compressed_bytes > len(header) + expected
            sha256 = "" if left or trailing else digest()
        else:
            hashed = hashlib.sha256(header)
            left = expected
            while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
                hashed.update(chunk)
                left -= len(chunk)
            trailing = bool(stream.read(1))
            sha256 = hashed.hexdigest()
    except BROKEN as error:
        raise DataError(
            f"{name} is a broken or truncated compressed file ({error}). Fetch it again."
        ) from None
    shown = " x ".join(map(str, shape))
    if left:
        raise DataError(
            f"{name} holds {expected - left} bytes of values, but its header says {expected} "
            f"({shown}). It is truncated: fetch it again."
        )
    if trailing:
        raise DataError(
            f"{name} continues after the {expected} bytes of values that its header says "
            f"({shown}). Remove the trailing bytes or fetch it again."
        )
    return ArrayInfo(len(header), dtype, shape, sha256)


def read_rows(
    content: BinaryIO, info: ArrayInfo, ranges: Sequence[tuple[int, int]], *, name: str
) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """Return the rows of these ranges of a verified file, in order, (N, *shape[1:]).

    Raise DataError if they are no longer there.
    """
    rows = np.empty((sum(stop - start for start, stop in ranges), *info.shape[1:]), info.dtype)
    values = rows.reshape(-1).view(np.uint8)
    row_bytes = prod(info.shape[1:]) * rows.itemsize
    filled = 0
    for start, stop in ranges:
        end = filled + (stop - start) * row_bytes
        try:
            content.seek(info.offset + start * row_bytes)
            while filled < end and (count := content.readinto(values[filled:end])):  # type: ignore[attr-defined]
                filled += count
        except BROKEN:
            pass
        if filled < end:
            raise DataError(f"{name} was changed while it was read. Run again when it is finished.")
    return rows
