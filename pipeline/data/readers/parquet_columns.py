"""The image column of a Parquet file, in any of its forms, and its integer columns -> arrays."""

from __future__ import annotations

from itertools import islice
from math import isqrt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.arrays import Int64Array, UInt8Array
from pipeline.contract import PIXEL_MAX
from pipeline.errors import DataError
from pipeline.images.decode import decode_grayscale, is_png_or_jpeg

PIXELS_AT_A_TIME = 1 << 20
"""Of lists, whose pixels take 19 bytes on their way."""

IMAGE, ID, LABEL = "image", "id", "label"

TENSORS = ("arrow.fixed_shape_tensor", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")


def check_type(name: str, column: str, kind: pa.DataType) -> None:
    """DataError for a type that could bring code, or that is not known here."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name not in TENSORS:
            raise DataError(
                f"{name}: column `{column[:99]}` is of the extension type "
                f"{kind.extension_name[:99]!r}, which is not read, as such types may run code. "
                "Write the file without it."
            )
        inner = [kind.storage_type]
    for part in inner:
        check_type(name, column, part)


def image_shape(
    parquet: pq.ParquetFile, name: str, shape: tuple[int, int] | None
) -> tuple[int, int]:
    """Height and width: as the schema's metadata, the type, or the first image say."""
    field, metadata = parquet.schema_arrow.field(IMAGE), parquet.schema_arrow.metadata or {}
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        height, width = kind.shape
        return int(height), int(width)
    if pa.types.is_fixed_size_binary(kind):
        return _sized(kind.byte_width, metadata, name, shape)
    # One row is decoded, not all of the row group.
    (batch,) = islice(parquet.iter_batches(1, columns=[IMAGE], use_threads=False), 1)
    first = pa.chunked_array([batch.column(0)]).drop_null()
    if not len(first):
        raise DataError(f"{name}: the first image is null. Put one that is whole first.")
    if (binary := _binary(first)) is not None:
        data = binary[0].as_py()
        if not is_png_or_jpeg(data):
            return _sized(len(data), metadata, name, shape)
        try:
            height, width = decode_grayscale(data).shape
        except DataError as error:
            raise DataError(f"{name}: the first image: {error}") from None
        return height, width
    if _depth(kind) == 2:
        rows = first[0].as_py()
        return len(rows), len(rows[0])
    if _depth(kind) == 1:
        return _sized(len(first[0].as_py()), metadata, name, shape)
    raise DataError(
        f"{name}: column `image` is {kind}, but images are fixed-size binary, lists of numbers, "
        "tensors, or PNG and JPEG as binary."
    )


def _sized(
    pixels: int, metadata: dict[bytes, bytes], name: str, shape: tuple[int, int] | None
) -> tuple[int, int]:
    if b"height" in metadata and b"width" in metadata:
        shape = int(metadata[b"height"]), int(metadata[b"width"])
    elif shape is None and isqrt(pixels) ** 2 == pixels:
        shape = isqrt(pixels), isqrt(pixels)
    if shape is None or shape[0] * shape[1] != pixels:
        wanted = "a square" if shape is None else f"{shape[0]} x {shape[1]}"
        raise DataError(
            f"{name}: images of column `image` have {pixels} pixels, which is not {wanted}. Say "
            "`height` and `width` in the metadata of the schema, or give other images."
        )
    return shape


def _binary(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The bytes of a column of pictures, which may stand in a struct."""
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column, kind = pc.struct_field(column, "bytes"), kind.field("bytes").type
    return column if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _depth(kind: pa.DataType) -> int:
    """Lists within lists of numbers; -1 where that is not what it is."""
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
    """All images, uint8; those that are of no use, whose reasons are added, are dark."""
    kind = column.type
    images = np.zeros((len(column), *shape), np.uint8)
    nulls = np.flatnonzero(column.is_null().to_numpy())
    reasons |= {int(row): "the image is null" for row in nulls}
    if pa.types.is_fixed_size_binary(kind):
        (chunk,) = column.chunks or [pa.array([], kind)]
        flat = np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * kind.byte_width :]
        return flat[: images.size].reshape(images.shape)
    if (binary := _binary(column)) is not None:
        for at, data in enumerate(binary.to_pylist()):
            if data is None:
                reasons[at] = "the image is null"
                continue
            try:
                images[at] = _picture(data, shape)
            except DataError as error:
                reasons[at] = str(error)
        return images
    array = column.chunk(0)
    if isinstance(kind, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_struct(array.type):
        # The tensors of Ray keep each image's shape beside its values.
        array = array.field("data")
    step = max(1, PIXELS_AT_A_TIME // images[0].size)
    for start in range(0, len(array), step):
        found = _from_lists(array.slice(start, step), images[start : start + step])
        for row, reason in found.items():
            reasons.setdefault(start + row, reason)
    return images


def _picture(data: bytes, shape: tuple[int, int]) -> UInt8Array:
    if not is_png_or_jpeg(data):
        if len(data) != shape[0] * shape[1]:
            raise DataError(f"the image has {len(data)} bytes and is no PNG and no JPEG")
        return np.frombuffer(data, np.uint8).reshape(shape)
    pixels = decode_grayscale(data)
    if pixels.shape != shape:
        raise DataError(
            f"the image is {pixels.shape[0]} x {pixels.shape[1]}, others are "
            f"{shape[0]} x {shape[1]}"
        )
    return pixels


def _from_lists(array: pa.Array, images: UInt8Array) -> dict[int, str]:
    """Fills in the images of lists, flat or nested; says of which rows that cannot be, and why."""
    reasons = dict[int, str]()
    rows, values = np.arange(len(array)), array
    levels = [images[0].size] if _depth(array.type) == 1 else list(images.shape[1:])
    for level in levels:
        lengths = np.asarray(pc.list_value_length(values).fill_null(0))
        for row in np.unique(rows[lengths != level]):
            reasons.setdefault(int(row), f"the image is not {images.shape[1]} x {images.shape[2]}")
        rows, values = np.repeat(rows, lengths), pc.list_flatten(values)
    numbers = np.asarray(values.cast(pa.float64(), safe=False).fill_null(-1))
    off = (numbers < 0) | (numbers > PIXEL_MAX) | (numbers != np.floor(numbers))
    for row in np.unique(rows[off]):
        reasons.setdefault(int(row), f"a pixel is not an integer from 0 to {PIXEL_MAX}")
    keep = np.ones(len(images), bool)
    keep[list(reasons)] = False
    images[keep] = numbers[keep[rows]].reshape(-1, *images.shape[1:])
    return reasons


def decode_integers(
    column: pa.ChunkedArray, instead: Int64Array, reasons: dict[int, str], what: str
) -> Int64Array:
    nulls = column.is_null().to_numpy()
    reasons |= {int(row): f"the {what} is null" for row in np.flatnonzero(nulls)}
    return np.where(nulls, instead, column.fill_null(0).cast(pa.int64(), safe=False).to_numpy())
