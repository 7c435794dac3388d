"""The IDX file format of MNIST, gzipped or not.

A header of 4 magic bytes (0, 0, type, rank) and `rank` big-endian uint32 sizes, then the values.
Only type 0x08 (uint8) is read. No memory is allocated on the word of a header: `verify` reads the
file in chunks, and `read_rows` reads only rows that `verify` has seen to exist.
Format: http://yann.lecun.com/exdb/mnist/ ("The IDX file format").
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from math import prod
from typing import BinaryIO, cast

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.errors import DataError

UINT8 = 0x08

CHUNK_BYTES = 1 << 20
"""Read at a time."""

BOMB_BYTES = 64 << 20
"""A gzipped file that unpacks to less is never called a bomb."""

BOMB_RATIO = 100
"""Bytes per compressed byte. Gzip reaches at most 1032; MNIST's label files have 2."""


@dataclass(frozen=True)
class Idx:
    """The shape of a verified file, and the sha256 of its content without gzip."""

    shape: tuple[int, ...]
    sha256: str


def verify(file: BinaryIO, *, name: str, rank: int, compressed_bytes: int) -> Idx:
    """Read a whole file, chunk by chunk, and return its shape and digest.

    `name` is for messages; `compressed_bytes` is the size of the file as stored.
    Raise DataError if the file is not exactly one uint8 array of this rank.
    """
    stream = content(file)
    gzipped = stream is not file
    try:
        header = stream.read(4 + 4 * rank)
        shape = _parse(header, name=name, rank=rank)
        expected = prod(shape)
        if gzipped and expected > max(BOMB_BYTES, BOMB_RATIO * compressed_bytes):
            raise DataError(
                f"{name} would unpack {compressed_bytes} bytes to {expected}: this looks like a "
                f"gzip bomb (over {BOMB_RATIO}:1). If it is real, unpack it first."
            )
        sha256 = hashlib.sha256(header)
        left = expected
        while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
            sha256.update(chunk)
            left -= len(chunk)
        trailing = stream.read(1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{name} is a broken or truncated gzip file ({error}). Fetch it again."
        ) from None
    if left:
        raise DataError(
            f"{name} holds {expected - left} values, but its header says {expected} "
            f"({_times(shape)}). It is truncated: fetch it again."
        )
    if trailing:
        raise DataError(
            f"{name} continues after the {expected} values that its header says "
            f"({_times(shape)}). Remove the trailing bytes or fetch it again."
        )
    return Idx(shape, sha256.hexdigest())


def content(file: BinaryIO) -> BinaryIO:
    """Return the content of a file that is at its beginning, unpacked if it is gzipped."""
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not gzipped:
        return file
    # GzipFile reads a few KiB at a time. Unbuffered, each would be a request to an object store.
    buffered = io.BufferedReader(cast(io.RawIOBase, file), CHUNK_BYTES)
    return cast(BinaryIO, gzip.GzipFile(fileobj=buffered))


def read_rows(
    content: BinaryIO, *, name: str, shape: tuple[int, ...], start: int, stop: int
) -> UInt8Array:
    """Return rows start..stop of a verified file: uint8 (stop - start, *shape[1:]).

    Raise DataError if they are no longer there.
    """
    row_bytes = prod(shape[1:])
    size = (stop - start) * row_bytes
    try:
        content.seek(4 + 4 * len(shape) + start * row_bytes)
        values = content.read(size)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        values = b""
    if len(values) != size:
        raise DataError(f"{name} was changed while it was read. Run again when it is finished.")
    return np.frombuffer(values, np.uint8).reshape(stop - start, *shape[1:])


def encode(array: UInt8Array) -> bytes:
    """Return the IDX file of a uint8 array."""
    header = struct.pack(f">2x2B{array.ndim}I", UINT8, array.ndim, *array.shape)
    return header + array.tobytes()


def _parse(header: bytes, *, name: str, rank: int) -> tuple[int, ...]:
    if len(header) < 4 or header[:2] != b"\0\0":
        raise DataError(
            f"{name} starts with {header[:4].hex() or 'nothing'}, but an IDX file starts with two "
            "zero bytes. Give an IDX file, gzipped or not."
        )
    if header[2] != UINT8:
        raise DataError(
            f"{name} has the IDX type 0x{header[2]:02x}, but only 0x08 (uint8) is supported."
        )
    if header[3] != rank:
        kind = {1: "labels", 3: "images"}[rank]
        raise DataError(
            f"{name} has {header[3]} axes, but {kind} have {rank}. Are images and labels swapped?"
        )
    if len(header) < 4 + 4 * rank:
        raise DataError(f"{name} ends within its header. Fetch it again.")
    shape = struct.unpack(f">{rank}I", header[4:])
    if 0 in shape:
        raise DataError(f"{name} is empty: its header says {_times(shape)}.")
    return shape


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
