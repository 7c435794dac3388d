"""A reader of Parquet files with an image column in any of the forms that data sets use.

Raw pixels as fixed-size binary, lists or Arrow tensors; PNG or JPEG as binary, or as the struct of
bytes and path that Hugging Face writes. The schema is checked before any row is read: extension
types other than tensors are refused in every column, nested or not, because some of them unpickle
their values and so run code (CVE-2026-41486).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipeline.arrays import Int64Array
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.data.readers.parquet_columns import (
    ID,
    IMAGE,
    LABEL,
    check_type,
    decode_images,
    decode_integers,
    image_shape,
)
from pipeline.data.readers.parquet_stream import ParquetStream, open_file
from pipeline.data.readers.rows import RowBatch, require_unchanged
from pipeline.errors import DataError, UserError


@dataclass(frozen=True)
class ParquetReader:
    """A reader of one Parquet file.

    `own_ids`: ids come from its int64 column `id`, otherwise from positions. `labelled`: it has an
    integer column `label`. `class_names` are those in the metadata of its schema, if any.
    """

    storage: Storage
    entry: FileEntry
    shape: tuple[int, int]
    fingerprint: Fingerprint
    own_ids: bool
    labelled: bool
    class_names: tuple[str, ...] | None

    def current_fingerprint(self) -> Fingerprint:
        return self.storage.fingerprint(self.entry.path)

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        needed = [IMAGE]
        if self.own_ids:
            needed.append(ID)
        if self.labelled:
            needed.append(LABEL)
        # Each column once, even if the caller asks for one of ours.
        needed = list(dict.fromkeys([*needed, *columns]))
        with _as_data_error(self.storage.display(self.entry.path)):
            table = _open_stream(self, tuple(needed)).read(begin, end)
            reasons = dict[int, str]()
            ids: Int64Array = np.arange(first_id + begin, first_id + end, dtype=np.int64)
            if self.own_ids:
                ids = decode_integers(table[ID], ids, reasons, "id")
            labels = decode_integers(table[LABEL], ids, reasons, "label") if self.labelled else None
            images = decode_images(table[IMAGE], self.shape, reasons)
        return RowBatch(ids, images, labels, table.select(list(columns))).drop(reasons)


@lru_cache(maxsize=1)
def _open_stream(reader: ParquetReader, columns: tuple[str, ...]) -> ParquetStream:
    """Open a file. The cache keeps it open until another file, or other columns, are read."""
    stream = ParquetStream(reader.storage.open(reader.entry.path), columns)
    # Compare after opening: an open handle keeps the old content even if the path is replaced.
    require_unchanged(reader)
    if stream.missing:
        name = reader.storage.display(reader.entry.path)
        raise DataError(f"{name} has no column {stream.missing[0]!r}.")
    return stream


def open_parquet(storage: Storage, path: str, shape: tuple[int, int] | None) -> ParquetReader:
    """Verify a Parquet file and return its reader.

    `shape` is the height and width of the images if the file itself does not say; None expects
    squares. Raise DataError, which names the file, if it is not a Parquet file of images.
    """
    name, fingerprint = storage.display(path), storage.fingerprint(path)
    with storage.open(path) as file, _as_data_error(name):
        parquet = open_file(file)
        schema, rows = parquet.schema_arrow, int(parquet.metadata.num_rows)
        for field in schema:
            check_type(name, field.name, field.type)
        if IMAGE not in schema.names:
            raise DataError(f"{name}: column `image` is missing; there are {schema.names[:9]}.")
        repeated = [column for column, count in Counter(schema.names).items() if count > 1]
        if repeated:
            raise DataError(f"{name} has several columns `{repeated[0][:99]}`. Leave one.")
        if rows < 1:
            raise DataError(f"{name} has no rows.")
        groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
        if rows != sum(group.num_rows for group in groups):
            raise DataError(
                f"{name} does not have the {rows} rows that its footer says. It is damaged."
            )
        height, width = image_shape(parquet, name, shape)
        if min(height, width) < 1:
            raise DataError(f"{name}: images of column `image` are {height} x {width}.")
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return ParquetReader(
            storage,
            FileEntry(path=path, bytes=file.size(), sha256=sha256, rows=rows),
            (height, width),
            fingerprint,
            own_ids=ID in schema.names and schema.field(ID).type == pa.int64(),
            labelled=LABEL in schema.names and pa.types.is_integer(schema.field(LABEL).type),
            class_names=_class_names(name, schema.metadata or {}),
        )


@contextmanager
def _as_data_error(name: str) -> Iterator[None]:
    """Turn every exception into a DataError that names the file, except the project's own.

    pyarrow raises many types for damaged files; none of them is a bug of ours to let through.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(
            f"{name} could not be read as Parquet: {reason}. Run again. If it fails again, the "
            "file is damaged or truncated."
        ) from None


def _class_names(name: str, metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    if (text := metadata.get(b"class_names")) is None:
        return None
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise DataError(
            f"{name}: `class_names` in the metadata of the schema is not a list of strings."
        )
    return tuple(names)
