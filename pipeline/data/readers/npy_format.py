"""NumPy's format of one array: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.

Arrays of Python objects, whose values are pickles and run code, are refused.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np

from pipeline.errors import DataError

MAGIC = np.lib.format.MAGIC_PREFIX

MAX_HEADER_BYTES = 10_000
"""NumPy's own bound for headers that are not trusted."""


def parse(start: bytes, stream: BinaryIO, *, name: str) -> tuple[bytes, str, tuple[int, ...]]:
    """Return the header, which begins with `start`, and the dtype and shape that it says.

    Raise DataError if it is not a header, or not of an array of numbers in C order.
    """
    version = stream.read(2)
    length = stream.read(2 if version[:1] == b"\1" else 4)
    size = int.from_bytes(length, "little")
    header = start + version + length + stream.read(min(size, MAX_HEADER_BYTES))
    reader = io.BytesIO(header)
    try:
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(reader)]
        shape, fortran, dtype = read(reader, max_header_size=MAX_HEADER_BYTES)
    except Exception as error:
        # NumPy parses the header as Python, whose parser raises many types.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{name} is not a NumPy array: {reason}. Save it again.") from None
    if dtype.kind not in "uif":
        raise DataError(
            f"{name} holds an array of {dtype}, but images and labels are numbers. Convert it "
            "with astype(numpy.uint8), and save it again."
        )
    if fortran and len(shape) > 1:
        raise DataError(f"{name} is in Fortran order. Save it again with numpy.ascontiguousarray.")
    if not shape or min(shape) < 1:
        raise DataError(f"{name} is empty: its shape is {shape}.")
    return header, dtype.str, shape
