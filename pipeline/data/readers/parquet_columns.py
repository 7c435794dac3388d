"""Decoding of Parquet columns: images in any supported form, and integers.

To add a form of the column `image`: recognize it in `image_shape`, decode it in `decode_images`; if
it is an extension type, list it in `TENSORS`.
"""

from __future__ import annotations

from itertools import islice
from math import isqrt, prod

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.arrays import Int64Array, UInt8Array
from pipeline.contract import PIXEL_MAX
from pipeline.errors import DataError
from pipeline.images.decode import decode_grayscale, is_png_or_jpeg

PIXELS_AT_A_TIME = 1 << 20
"""Pixels of lists decoded at a time. Each takes 19 bytes meanwhile: 20 MB in all."""

IMAGE, ID, LABEL = "image", "id", "label"

TENSORS = ("arrow.fixed_shape_tensor", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
"""The extension types that are read; reading them unpickles nothing."""


def check_type(name: str, column: str, kind: pa.DataType) -> None:
    """Raise DataError for an extension type other than a tensor, also inside other types."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name not in TENSORS:
            raise DataError(
                f"{name}: column `{column[:99]}` is of the extension type "
                f"{kind.extension_name[:99]!r}, which is not read, as such types may run code. "
                "Write the file without it."
            )
        inner = [kind.storage_type]
    for inner_kind in inner:
        check_type(name, column, inner_kind)


def image_shape(
    parquet: pq.ParquetFile, name: str, shape: tuple[int, int] | None
) -> tuple[int, int]:
    """Return height and width, from the column's type, the schema's metadata, or the first image.

    `shape` is the fallback for raw pixels. Raise DataError if the column has none of the
    supported forms, or if the sizes contradict each other.
    """
    kind = parquet.schema_arrow.field(IMAGE).type
    metadata = parquet.schema_arrow.metadata or {}
    if isinstance(kind, pa.BaseExtensionType):
        height, width = kind.shape
        return int(height), int(width)
    if pa.types.is_fixed_size_binary(kind):
        return _shape_of_pixels(kind.byte_width, metadata, name, shape)
    # Decode one row, not the whole row group.
    (batch,) = islice(parquet.iter_batches(1, columns=[IMAGE], use_threads=False), 1)
    first = pa.chunked_array([batch.column(0)]).drop_null()
    if not len(first):
        raise DataError(f"{name}: the first image is null. Put a valid one first.")
    binary = _as_binary(first)
    if binary is not None:
        content = binary[0].as_py()
        if not is_png_or_jpeg(content):
            return _shape_of_pixels(len(content), metadata, name, shape)
        try:
            height, width = decode_grayscale(content).shape
        except DataError as error:
            raise DataError(f"{name}: the first image: {error}") from None
        return height, width
    if _depth(kind) == 2:
        rows = first[0].as_py()
        return len(rows), len(rows[0])
    if _depth(kind) == 1:
        return _shape_of_pixels(len(first[0].as_py()), metadata, name, shape)
    raise DataError(
        f"{name}: column `image` is {kind}, but images are fixed-size binary, lists of numbers, "
        "tensors, or PNG and JPEG as binary."
    )


def _shape_of_pixels(
    pixels: int, metadata: dict[bytes, bytes], name: str, shape: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the shape of images of so many pixels.

    The metadata decide, then `shape`, then a square is assumed.
    """
    if b"height" in metadata and b"width" in metadata:
        shape = int(metadata[b"height"]), int(metadata[b"width"])
    elif shape is None and isqrt(pixels) ** 2 == pixels:
        shape = isqrt(pixels), isqrt(pixels)
    if shape is None or shape[0] * shape[1] != pixels:
        expected = "a square" if shape is None else f"{shape[0]} x {shape[1]}"
        raise DataError(
            f"{name}: images of column `image` have {pixels} pixels, which is not {expected}. Put "
            "`height` and `width` into the metadata of the schema, or give other images."
        )
    return shape


def _as_binary(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a binary column, or the field `bytes` of a struct; None for any other type."""
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column, kind = pc.struct_field(column, "bytes"), kind.field("bytes").type
    return column if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _depth(kind: pa.DataType) -> int:
    """Return how deeply lists of numbers are nested: 0 for a number, -1 for any other type."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return 0
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_list or pa.types.is_fixed_size_list(kind):
        depth = _depth(kind.value_type)
        return depth + 1 if depth >= 0 else -1
    return -1


def decode_images(
    column: pa.ChunkedArray, shape: tuple[int, int], reasons: dict[int, str]
) -> UInt8Array:
    """Return the images of a column of one chunk, uint8 (N, height, width).

    Add the positions of rows that cannot be decoded to `reasons`; their pixels are undefined.
    """
    nulls = np.flatnonzero(column.is_null().to_numpy())
    reasons |= {int(row): "the image is null" for row in nulls}
    if pa.types.is_fixed_size_binary(column.type):
        return _decode_fixed_size(column, shape)
    binary = _as_binary(column)
    if binary is not None:
        return _decode_binary(binary, shape, reasons)
    return _decode_lists(column.chunk(0), shape, reasons)


def _decode_fixed_size(column: pa.ChunkedArray, shape: tuple[int, int]) -> UInt8Array:
    """Return raw pixels of fixed-size binary: a view of the column's buffer, not a copy."""
    (chunk,) = column.chunks or [pa.array([], column.type)]
    pixels = np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * column.type.byte_width :]
    return pixels[: len(column) * prod(shape)].reshape(len(column), *shape)


def _decode_binary(
    column: pa.ChunkedArray, shape: tuple[int, int], reasons: dict[int, str]
) -> UInt8Array:
    images = np.zeros((len(column), *shape), np.uint8)
    for row, content in enumerate(column.to_pylist()):
        # A struct that is not null may hold null bytes.
        if content is None:
            reasons[row] = "the image is null"
            continue
        try:
            images[row] = _decode_content(content, shape)
        except DataError as error:
            reasons[row] = str(error)
    return images


def _decode_content(content: bytes, shape: tuple[int, int]) -> UInt8Array:
    """Return the pixels of a PNG, a JPEG, or raw pixels; raise DataError if they are not these."""
    if not is_png_or_jpeg(content):
        if len(content) != shape[0] * shape[1]:
            raise DataError(f"the image has {len(content)} bytes and is neither a PNG nor a JPEG")
        return np.frombuffer(content, np.uint8).reshape(shape)
    pixels = decode_grayscale(content)
    if pixels.shape != shape:
        raise DataError(
            f"the image is {pixels.shape[0]} x {pixels.shape[1]}, others are "
            f"{shape[0]} x {shape[1]}"
        )
    return pixels


def _decode_lists(array: pa.Array, shape: tuple[int, int], reasons: dict[int, str]) -> UInt8Array:
    """Return the images of lists or tensors of numbers, decoded some rows at a time."""
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_struct(array.type):
        # Ray's tensors store the shape of each image beside its values.
        array = array.field("data")
    images = np.zeros((len(array), *shape), np.uint8)
    step = max(1, PIXELS_AT_A_TIME // images[0].size)
    for start in range(0, len(array), step):
        failures = _fill_from_lists(array.slice(start, step), images[start : start + step])
        for row, reason in failures.items():
            # A null image has its reason already.
            reasons.setdefault(start + row, reason)
    return images


def _fill_from_lists(array: pa.Array, images: UInt8Array) -> dict[int, str]:
    """Fill in the images of lists, flat or nested. Return the reasons of rows that it cannot."""
    reasons = dict[int, str]()
    height, width = images.shape[1:]
    levels = [height * width] if _depth(array.type) == 1 else [height, width]
    # Flatten one level of the lists at a time: `rows[i]` is the row that `values[i]` belongs to.
    rows = np.arange(len(array))
    values = array
    for expected_length in levels:
        lengths = np.asarray(pc.list_value_length(values).fill_null(0))
        for row in np.unique(rows[lengths != expected_length]):
            reasons.setdefault(int(row), f"the image is not {height} x {width}")
        rows = np.repeat(rows, lengths)
        values = pc.list_flatten(values)
    # A null pixel becomes -1, and so is invalid.
    numbers = np.asarray(values.cast(pa.float64(), safe=False).fill_null(-1))
    invalid = (numbers < 0) | (numbers > PIXEL_MAX) | (numbers != np.floor(numbers))
    for row in np.unique(rows[invalid]):
        reasons.setdefault(int(row), f"a pixel is not an integer from 0 to {PIXEL_MAX}")
    # The rows that are left have exactly height * width values each.
    keep = np.ones(len(images), bool)
    keep[list(reasons)] = False
    images[keep] = numbers[keep[rows]].reshape(-1, height, width)
    return reasons


def decode_integers(
    column: pa.ChunkedArray, fallback: Int64Array, reasons: dict[int, str], name: str
) -> Int64Array:
    """Return an integer column as int64 (N,); unsigned values over 2^63 - 1 wrap around.

    A null takes its value from `fallback`, and its position is added to `reasons`.
    """
    nulls = column.is_null().to_numpy()
    reasons |= {int(row): f"the {name} is null" for row in np.flatnonzero(nulls)}
    return np.where(nulls, fallback, column.fill_null(0).cast(pa.int64(), safe=False).to_numpy())
