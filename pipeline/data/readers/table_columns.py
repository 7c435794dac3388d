"""Decoding of columns of tables: images in any supported form, and integers.

To add a form of images: describe it in `image_column`, and decode it in `decode_images`; if it is
an extension type, list it in `TENSORS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.arrays import Int64Array, UInt8Array
from pipeline.contract import Preparation
from pipeline.data.readers.pixels import image_axes, prepare_rows, to_images
from pipeline.errors import DataError
from pipeline.images.decode import is_png_or_jpeg
from pipeline.images.prepare import prepare_file

PIXELS_AT_A_TIME = 1 << 20
"""Pixels of lists decoded at a time. Each takes 19 bytes meanwhile: 20 MB in all."""

ID = "id"

IMAGE_NAMES = ("image", "img", "pixels")

LABEL_NAMES = ("label", "class", "target")

TENSORS = ("arrow.fixed_shape_tensor", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
"""The extension types of images; reading them unpickles nothing."""

PLAIN_TYPES = (*TENSORS, "arrow.uuid", "arrow.json", "arrow.bool8")
"""The extension types that other columns may have; none of them carries code."""


@dataclass(frozen=True)
class ImageColumn:
    """The column of images of a table: how its values are stored, and the shape of the dataset.

    `stored` is the shape of an image of numbers; None if there are image files. `order` is that of
    its axes in an image. `axes` are height, width and channels after that.
    """

    name: str
    shape: tuple[int, int]
    stored: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None
    axes: tuple[int, int, int] | None = None
    preparation: Preparation = Preparation()


def check_type(name: str, column: str, kind: pa.DataType) -> None:
    """Raise DataError for an extension type that may carry code, also inside other types."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name not in PLAIN_TYPES:
            raise DataError(
                f"{name}: column `{column[:99]}` is of the extension type "
                f"{kind.extension_name[:99]!r}, which is not read, as such types may run code. "
                "Write the file without it."
            )
        inner = [kind.storage_type]
    for inner_kind in inner:
        check_type(name, column, inner_kind)


def image_column(
    name: str,
    field: pa.Field,
    metadata: dict[bytes, bytes],
    values: Iterable[pa.Array],
    *,
    preparation: Preparation,
    size: tuple[int, int] | None,
    hint: tuple[int, int] | None,
) -> ImageColumn:
    """Describe the column of images, by its type, the schema's metadata, or its first valid image.

    `values` are the column's arrays, read only if needed. `size` is that of the dataset, if its
    images are fitted; `hint` that of raw pixels, if nothing else says it. Raise DataError if
    the column has none of the supported forms, or if the sizes contradict each other.
    """
    kind, expected = field.type, None
    if b"height" in metadata and b"width" in metadata:
        expected = int(metadata[b"height"]), int(metadata[b"width"])

    def numbers(stored: tuple[int, ...], order: tuple[int, ...] | None = None) -> ImageColumn:
        logical = tuple(stored[axis] for axis in order) if order else stored
        axes = image_axes(logical, f"{name}, column `{field.name}`", expected, hint)
        return ImageColumn(field.name, size or axes[:2], stored, order, axes, preparation)

    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name not in TENSORS:
            raise DataError(f"{name}: column `{field.name}` is {kind}, which holds no images.")
        stored = tuple(kind.shape)
        permutation = getattr(kind, "permutation", None)
        if permutation is None:
            return numbers(stored)
        # pyarrow writes the inverse of what Arrow specifies. Only one of them makes an image, or
        # they are the same.
        with suppress(DataError):
            return numbers(stored, tuple(int(axis) for axis in np.argsort(permutation)))
        return numbers(stored, tuple(permutation))
    if pa.types.is_fixed_size_binary(kind):
        return numbers((kind.byte_width,))
    first_error = None
    for value in _valid_values(name, field, values):
        if not isinstance(value, bytes):
            return numbers(np.shape(np.array(value, object)))
        if not is_png_or_jpeg(value):
            return numbers((len(value),))
        try:
            height, width = prepare_file(value, preparation, size).pixels.shape
            return ImageColumn(field.name, (height, width), preparation=preparation)
        except DataError as error:
            first_error = first_error or error
    raise DataError(f"{name}: column `{field.name}`: {first_error or 'every image is null'}")


def _valid_values(name: str, field: pa.Field, values: Iterable[pa.Array]) -> Iterable[object]:
    """Yield the images that are not null, as bytes or lists."""
    has_paths = False
    for array in values:
        column = pa.chunked_array([array])
        binary = _as_binary(column)
        if binary is None and _depth(field.type) < 1:
            raise DataError(
                f"{name}: column `{field.name}` is {field.type}, but images are fixed-size binary, "
                "lists of numbers, tensors, or PNG and JPEG as binary."
            )
        for row, value in enumerate((column if binary is None else binary).to_pylist()):
            if value is not None:
                yield value
            elif binary is not None and pa.types.is_struct(field.type):
                path = array[row].as_py()
                has_paths = has_paths or bool(path and path.get("path"))
    if has_paths:
        raise DataError(
            f"{name}: column `{field.name}` holds paths of image files, but not the files. Write "
            "the table with its images embedded."
        )


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
    column: pa.ChunkedArray, image: ImageColumn, reasons: dict[int, str]
) -> UInt8Array:
    """Return the images of a column of one chunk, uint8 (N, height, width).

    Add the positions of rows that cannot be decoded to `reasons`; their pixels are undefined.
    """
    nulls = np.flatnonzero(column.is_null().to_numpy())
    reasons |= {int(row): "the image is null" for row in nulls}
    if image.stored is None or image.axes is None:
        return _decode_binary(column, image, reasons)
    if pa.types.is_fixed_size_binary(column.type):
        values = _fixed_size_pixels(column)
    elif _as_binary(column) is not None:
        return _decode_binary(column, image, reasons)
    else:
        values = _decode_lists(column.chunk(0), image.stored, reasons)
    values = values.reshape(len(column), *image.stored)
    if image.order:
        values = values.transpose(0, *(1 + axis for axis in image.order))
    images = to_images(values, image.axes, image.preparation, reasons)
    return prepare_rows(np.ascontiguousarray(images), image.preparation, image.shape, reasons)


def _fixed_size_pixels(column: pa.ChunkedArray) -> UInt8Array:
    """Return raw pixels of fixed-size binary: a view of the column's buffer, not a copy."""
    (chunk,) = column.chunks or [pa.array([], column.type)]
    width = column.type.byte_width
    if chunk.buffers()[1] is None:
        return np.zeros((0, width), np.uint8)
    pixels = np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width :]
    return pixels[: len(column) * width]


def _decode_binary(
    column: pa.ChunkedArray, image: ImageColumn, reasons: dict[int, str]
) -> UInt8Array:
    binary = _as_binary(column)
    assert binary is not None
    images = np.zeros((len(column), *image.shape), np.uint8)
    for row, content in enumerate(binary.to_pylist()):
        # A struct that is not null may hold null bytes.
        if content is None:
            reasons[row] = "the image is null"
            continue
        try:
            images[row] = _decode_content(content, image)
        except DataError as error:
            reasons[row] = str(error)
    return images


def _decode_content(content: bytes, image: ImageColumn) -> UInt8Array:
    """Return the pixels of a PNG, a JPEG, or raw pixels; raise DataError if they are not these."""
    if is_png_or_jpeg(content):
        return prepare_file(content, image.preparation, image.shape).pixels
    axes = image.axes or (*image.shape, 1)
    if len(content) != prod(axes):
        raise DataError(f"the image has {len(content)} bytes and is neither a PNG nor a JPEG")
    reasons = dict[int, str]()
    raw = np.frombuffer(content, np.uint8).reshape(1, *(image.stored or axes[:2]))
    pixels = to_images(raw, axes, image.preparation, reasons)
    pixels = prepare_rows(pixels, image.preparation, image.shape, reasons)
    if reasons:
        raise DataError(reasons[0])
    first: UInt8Array = pixels[0]
    return first


def _decode_lists(array: pa.Array, stored: tuple[int, ...], reasons: dict[int, str]) -> UInt8Array:
    """Return the numbers of lists or tensors, uint8 (N, ...), decoded some rows at a time."""
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_struct(array.type):
        # Ray's tensors store the shape of each image beside its values.
        array = array.field("data")
    images = np.zeros((len(array), prod(stored)), np.uint8)
    step = max(1, PIXELS_AT_A_TIME // prod(stored))
    for start in range(0, len(array), step):
        failures = _fill_from_lists(array.slice(start, step), images[start : start + step], stored)
        for row, reason in failures.items():
            # A null image has its reason already.
            reasons.setdefault(start + row, reason)
    return images


def _fill_from_lists(
    array: pa.Array, images: UInt8Array, stored: tuple[int, ...]
) -> dict[int, str]:
    """Fill in the numbers of lists, flat or nested. Return the reasons of rows that it cannot."""
    reasons = dict[int, str]()
    levels = [prod(stored)] if _depth(array.type) == 1 else list(stored)
    shown = " x ".join(map(str, stored)) if len(stored) > 1 else f"{stored[0]} pixels"
    # Flatten one level of the lists at a time: `rows[i]` is the row that `values[i]` belongs to.
    rows = np.arange(len(array))
    values = array
    for expected_length in levels:
        lengths = np.asarray(pc.list_value_length(values).fill_null(0))
        for row in np.unique(rows[lengths != expected_length]):
            reasons.setdefault(int(row), f"the image is not {shown}")
        rows = np.repeat(rows, lengths)
        values = pc.list_flatten(values)
    # A null pixel becomes -1, and so is invalid.
    numbers = np.asarray(values.cast(pa.float64(), safe=False).fill_null(-1))
    invalid = (numbers < 0) | (numbers > 255) | (numbers != np.floor(numbers))
    for row in np.unique(rows[invalid]):
        reasons.setdefault(int(row), "a pixel is not an integer from 0 to 255")
    # The rows that are left have exactly so many values each.
    keep = np.ones(len(images), bool)
    keep[list(reasons)] = False
    images[keep] = numbers[keep[rows]].reshape(-1, prod(stored))
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


def label_values(column: pa.ChunkedArray) -> list[str | None]:
    """Return the labels of a column of text, as text."""
    values: list[str | None] = column.cast(pa.string()).to_pylist()
    return values
