"""Parquet files as rows: an image column in any of the forms that data sets come in.

Raw pixels as fixed-size binary, lists or Arrow tensors; PNG or JPEG as binary, or as the struct of
bytes and path that Hugging Face writes. The schema is checked against what is known here before a
row is read, so nothing of a file is ever unpickled: extension types other than tensors are refused
wherever they stand (CVE-2026-41486 is one that ran code).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from math import isqrt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.contract import PIXEL_MAX, DataError, UserError
from pipeline.idx import Array
from pipeline.manifest import FileEntry
from pipeline.parquet_ranges import ParquetRanges, opened
from pipeline.pictures import grey, is_picture
from pipeline.rows import Block, Ints, require_unchanged
from pipeline.storage import Stamp, Storage

PIXELS_AT_A_TIME = 1 << 20
"""Of lists, whose pixels take 19 bytes on their way."""

IMAGE, ID, LABEL = "image", "id", "label"
TENSORS = ("arrow.fixed_shape_tensor", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")


@dataclass(frozen=True)
class ParquetRows:
    """One file. Its own ids are taken where it has int64 `id`; labels where it has integer ones."""

    storage: Storage
    entry: FileEntry
    shape: tuple[int, int]
    stamp: Stamp
    own_ids: bool
    labelled: bool
    class_names: tuple[str, ...] | None

    def stamp_now(self) -> Stamp:
        return self.storage.stamp(self.entry.path)

    def read(self, begin: int, end: int, first: int, columns: Sequence[str]) -> Block:
        used = [IMAGE] + [ID] * self.own_ids + [LABEL] * self.labelled
        with _named(self.storage.name(self.entry.path)):
            table = _ranges(self, tuple(dict.fromkeys([*used, *columns]))).read(begin, end)
            reasons = dict[int, str]()
            ids: Ints = np.arange(first + begin, first + end, dtype=np.int64)
            if self.own_ids:
                ids = _integers(table[ID], ids, reasons, "id")
            labels = _integers(table[LABEL], ids, reasons, "label") if self.labelled else None
            images = _images(table[IMAGE], self.shape, reasons)
        return Block(ids, images, labels, table.select(list(columns))).without(reasons)


@lru_cache(maxsize=1)
def _ranges(rows: ParquetRows, columns: tuple[str, ...]) -> ParquetRanges:
    """The file that is read, kept open until another is."""
    ranges = ParquetRanges(rows.storage.open(rows.entry.path), columns)
    # What is open stays what it is, whatever comes to stand under its name.
    require_unchanged(rows)
    if ranges.missing:
        name = rows.storage.name(rows.entry.path)
        raise DataError(f"{name} has no column {ranges.missing[0]!r}.")
    return ranges


def open_parquet(storage: Storage, path: str, shape: tuple[int, int] | None) -> ParquetRows:
    """A file that was found to hold images; of this shape, where its own schema does not say.

    Raises DataError, naming the file, where it does not.
    """
    name, stamp = storage.name(path), storage.stamp(path)
    with storage.open(path) as file, _named(name):
        parquet = opened(file)
        schema, rows = parquet.schema_arrow, int(parquet.metadata.num_rows)
        for field in schema:
            _check_type(name, field.name, field.type)
        if IMAGE not in schema.names:
            raise DataError(f"{name}: column `image` is missing; there are {schema.names[:9]}.")
        if twice := [column for column, n in Counter(schema.names).items() if n > 1]:
            raise DataError(f"{name} has several columns `{twice[0][:99]}`. Leave one.")
        if rows < 1:
            raise DataError(f"{name} has no rows.")
        if rows != sum(
            parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)
        ):
            raise DataError(f"{name} has not the {rows} rows that its footer says. It is damaged.")
        found = _shape_of(parquet, name, shape)
        if min(found) < 1:
            raise DataError(f"{name}: images of column `image` are {found[0]} x {found[1]}.")
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return ParquetRows(
            storage,
            FileEntry(path=path, bytes=file.size(), sha256=sha256, rows=rows),
            found,
            stamp,
            own_ids=ID in schema.names and schema.field(ID).type == pa.int64(),
            labelled=LABEL in schema.names and pa.types.is_integer(schema.field(LABEL).type),
            class_names=_class_names(name, schema.metadata or {}),
        )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns whatever a file's content makes fail into a DataError with its name."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(
            f"{name} could not be read as Parquet: {reason}. Run again; if that is of no avail, it "
            "is damaged, or not whole."
        ) from None


def _class_names(name: str, metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    if (text := metadata.get(b"class_names")) is None:
        return None
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(of, str) for of in names):
        raise DataError(f"{name}: `class_names` in the schema's metadata is no list of strings.")
    return tuple(names)


def _check_type(name: str, column: str, kind: pa.DataType) -> None:
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
        _check_type(name, column, part)


def _shape_of(parquet: pq.ParquetFile, name: str, shape: tuple[int, int] | None) -> tuple[int, int]:
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
        if not is_picture(data):
            return _sized(len(data), metadata, name, shape)
        try:
            height, width = grey(data).shape
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


def _images(column: pa.ChunkedArray, shape: tuple[int, int], reasons: dict[int, str]) -> Array:
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


def _picture(data: bytes, shape: tuple[int, int]) -> Array:
    if not is_picture(data):
        if len(data) != shape[0] * shape[1]:
            raise DataError(f"the image has {len(data)} bytes and is no PNG and no JPEG")
        return np.frombuffer(data, np.uint8).reshape(shape)
    pixels = grey(data)
    if pixels.shape != shape:
        raise DataError(
            f"the image is {pixels.shape[0]} x {pixels.shape[1]}, others are "
            f"{shape[0]} x {shape[1]}"
        )
    return pixels


def _from_lists(array: pa.Array, images: Array) -> dict[int, str]:
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


def _integers(column: pa.ChunkedArray, instead: Ints, reasons: dict[int, str], what: str) -> Ints:
    nulls = column.is_null().to_numpy()
    reasons |= {int(row): f"the {what} is null" for row in np.flatnonzero(nulls)}
    return np.where(nulls, instead, column.fill_null(0).cast(pa.int64(), safe=False).to_numpy())
