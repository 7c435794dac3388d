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
    """One file. Its own ids are taken where it has int64 `id`; labels where it has integer ones."""

    storage: Storage
    entry: FileEntry
    shape: tuple[int, int]
    fingerprint: Fingerprint
    own_ids: bool
    labelled: bool
    class_names: tuple[str, ...] | None

    def current_fingerprint(self) -> Fingerprint:
        return self.storage.fingerprint(self.entry.path)

    def read(self, begin: int, end: int, first: int, columns: Sequence[str]) -> RowBatch:
        used = [IMAGE] + [ID] * self.own_ids + [LABEL] * self.labelled
        with _named(self.storage.display(self.entry.path)):
            table = _open_stream(self, tuple(dict.fromkeys([*used, *columns]))).read(begin, end)
            reasons = dict[int, str]()
            ids: Int64Array = np.arange(first + begin, first + end, dtype=np.int64)
            if self.own_ids:
                ids = decode_integers(table[ID], ids, reasons, "id")
            labels = decode_integers(table[LABEL], ids, reasons, "label") if self.labelled else None
            images = decode_images(table[IMAGE], self.shape, reasons)
        return RowBatch(ids, images, labels, table.select(list(columns))).drop(reasons)


@lru_cache(maxsize=1)
def _open_stream(rows: ParquetReader, columns: tuple[str, ...]) -> ParquetStream:
    """The file that is read, kept open until another is."""
    ranges = ParquetStream(rows.storage.open(rows.entry.path), columns)
    # What is open stays what it is, whatever comes to stand under its name.
    require_unchanged(rows)
    if ranges.missing:
        name = rows.storage.display(rows.entry.path)
        raise DataError(f"{name} has no column {ranges.missing[0]!r}.")
    return ranges


def open_parquet(storage: Storage, path: str, shape: tuple[int, int] | None) -> ParquetReader:
    """A file that was found to hold images; of this shape, where its own schema does not say.

    Raises DataError, naming the file, where it does not.
    """
    name, fingerprint = storage.display(path), storage.fingerprint(path)
    with storage.open(path) as file, _named(name):
        parquet = open_file(file)
        schema, rows = parquet.schema_arrow, int(parquet.metadata.num_rows)
        for field in schema:
            check_type(name, field.name, field.type)
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
        found = image_shape(parquet, name, shape)
        if min(found) < 1:
            raise DataError(f"{name}: images of column `image` are {found[0]} x {found[1]}.")
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return ParquetReader(
            storage,
            FileEntry(path=path, bytes=file.size(), sha256=sha256, rows=rows),
            found,
            fingerprint,
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
