"""The IDX file format of MNIST.

A header of 4 magic bytes (0, 0, type, rank) and `rank` big-endian uint32 sizes, then the values.
Format: http://yann.lecun.com/exdb/mnist/ ("The IDX file format").
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from pipeline.arrays import UInt8Array
from pipeline.errors import DataError

UINT8 = 0x08

DTYPES = {UINT8: "|u1", 0x09: "|i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

MAX_RANK = 4


def parse(start: bytes, stream: BinaryIO, *, name: str) -> tuple[bytes, str, tuple[int, ...]]:
    """Return the header, which begins with `start`, and the dtype and shape that it says.

    Raise DataError if it is not a header of IDX.
    """
    if len(start) < 4 or start[:2] != b"\0\0":
        raise DataError(
            f"{name} starts with {start[:4].hex() or 'nothing'}, but an IDX file starts with two "
            "zero bytes. Give an IDX file or a NumPy array, gzipped or not."
        )
    kind, rank = start[2:4]
    if kind not in DTYPES:
        raise DataError(f"{name} has the IDX type 0x{kind:02x}, which does not exist.")
    if not 1 <= rank <= MAX_RANK:
        raise DataError(f"{name} has {rank} axes, but an array of images or labels has 1 to 4.")
    header = start + stream.read(4 + 4 * rank - len(start))
    if len(header) < 4 + 4 * rank:
        raise DataError(f"{name} ends within its header. Fetch it again.")
    shape = struct.unpack(f">{rank}I", header[4:])
    if 0 in shape:
        raise DataError(f"{name} is empty: its header says {' x '.join(map(str, shape))}.")
    return header, DTYPES[kind], shape


def encode(array: UInt8Array) -> bytes:
    """Return the IDX file of a uint8 array."""
    header = struct.pack(f">2x2B{array.ndim}I", UINT8, array.ndim, *array.shape)
    return header + array.tobytes()
