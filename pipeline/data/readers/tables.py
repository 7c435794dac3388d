"""A reader of tables (Parquet and Arrow IPC) with a column of images in any common form.

Raw pixels as fixed-size binary, lists or Arrow tensors; PNG or JPEG as binary, or as the struct of
bytes and path that Hugging Face writes. The schema is checked before any row is read: extension
types are refused in every column, nested or not, unless they carry no code: some unpickle their
values and so run code (CVE-2026-41486).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.arrays import Int64Array
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.contract import AS_IS, Preparation
from pipeline.data.readers.labels import Label, LabelCounts, add_counts, index_labels, keep_labels
from pipeline.data.readers.rows import Ranges, RowBatch, as_data_error, require_unchanged
from pipeline.data.readers.table_columns import (
    ID,
    IMAGE_NAMES,
    LABEL_NAMES,
    ImageColumn,
    check_type,
    decode_images,
    decode_integers,
    image_column,
    label_values,
)
from pipeline.data.readers.table_streams import TableStream, open_table_file
from pipeline.errors import DataError

TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")

ROWS_PER_BATCH = 64
"""Rows decoded at a time in the search for a valid image."""

STREAM_ROWS = 1_600_000
"""Rows that a task may decode and skip on its way to those that it returns (see `max_runs`)."""


@dataclass(frozen=True)
class TableReader:
    """A reader of one file.

    `own_ids`: ids come from its int64 column `id`, otherwise from positions. `label` is the name of
    the column of labels, and `classes` are its values in the order of classes. `class_names` are
    those in the metadata of its schema, if any. `starts` are the first rows of its groups, which
    are decoded from their beginning, and the number of all rows.
    """

    storage: Storage
    entry: FileEntry
    image: ImageColumn
    fingerprint: Fingerprint
    own_ids: bool = False
    label: str | None = None
    class_names: tuple[str, ...] | None = None
    classes: tuple[Label, ...] = ()
    starts: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.shape

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.storage.display(self.entry.path)

    @property
    def max_runs(self) -> int:
        group_rows = max((stop - start for start, stop in pairwise(self.starts)), default=1)
        return max(4, min(16, STREAM_ROWS // max(1, group_rows)))

    @property
    def bytes_per_row(self) -> int:
        # Lists are decoded to numbers of 8 bytes.
        return 8 * prod(self.image.stored or self.shape)

    def is_unchanged(self, ranges: Ranges) -> bool:
        return self.storage.fingerprint(self.entry.path) == self.fingerprint

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        needed = [self.image.name]
        if self.own_ids:
            needed.append(ID)
        if self.label and self.classes:
            needed.append(self.label)
        # Each column once, even if the caller asks for one of ours.
        needed = list(dict.fromkeys([*needed, *columns]))
        with as_data_error(self.name, "a table"):
            table = _stream(self, tuple(needed), begin).read(begin, end)
            reasons = dict[int, str]()
            ids: Int64Array = np.arange(first_id + begin, first_id + end, dtype=np.int64)
            if self.own_ids:
                ids = decode_integers(table[ID], ids, reasons, "id")
            labels = None
            if self.label and self.classes:
                labels, unknown = self._read_labels(table, reasons)
                reasons |= {row: unknown[row] for row in unknown if row not in reasons}
            images = decode_images(table[self.image.name], self.image, reasons)
        return RowBatch(ids, images, labels, table.select(list(columns))).drop(reasons)

    def _read_labels(
        self, table: pa.Table, reasons: dict[int, str]
    ) -> tuple[Int64Array, dict[int, str]]:
        column = table[self.label]
        if not _is_integer(column.type):
            return index_labels(label_values(column), self.classes)
        zeros = np.zeros(len(column), np.int64)
        return index_labels(decode_integers(column, zeros, reasons, "label"), self.classes)

    @property
    def labelled(self) -> bool:
        return self.label is not None

    def with_classes(self, classes: tuple[Label, ...]) -> TableReader:
        # Ids of several files may be the same; positions in the source are not.
        return replace(self, classes=classes, own_ids=False)

    def count_labels(self) -> LabelCounts:
        """Return how often each label occurs."""
        counts = Counter[Label]()
        with self.storage.open(self.entry.path) as file, as_data_error(self.name, "a table"):
            for batch in open_table_file(file, self.starts).batches_from(
                0, [cast(str, self.label)], None
            ):
                pairs = pc.value_counts(batch.column(0)).to_pylist()
                by_value = {pair["values"]: pair["counts"] for pair in pairs}
                add_counts(counts, keep_labels(by_value), self.name)
        return counts


MAX_STREAMS = 16
"""Places of files that stay open for reading on: those of the runs of a shard."""

_streams: list[tuple[tuple[object, ...], TableStream]] = []
"""The open places of all files in this process, least recently used first."""


def _stream(reader: TableReader, columns: tuple[str, ...], begin: int) -> TableStream:
    """Return a stream of the file that can read on from row `begin` soonest."""
    key = reader.storage, reader.entry.path, reader.fingerprint, columns
    ahead = [opened for opened in _streams if opened[0] == key and opened[1].can_continue(begin)]
    if ahead:
        stream = max((stream for _, stream in ahead), key=lambda stream: stream.position)
        _streams.remove((key, stream))
    else:
        old_key, old = _streams.pop(0) if len(_streams) == MAX_STREAMS else (None, None)
        stream = old if old and old_key == key else _open_stream(reader, columns)
    _streams.append((key, stream))
    return stream


def _open_stream(reader: TableReader, columns: tuple[str, ...]) -> TableStream:
    stream = TableStream(reader.storage.open(reader.entry.path), columns, reader.starts)
    # Compare after opening: an open handle keeps the old content even if the path is replaced.
    require_unchanged(reader)
    if stream.missing:
        raise DataError(f"{reader.name} has no column {stream.missing[0]!r}.")
    return stream


def open_table(
    storage: Storage,
    path: str,
    *,
    preparation: Preparation = AS_IS,
    size: tuple[int, int] | None = None,
    hint: tuple[int, int] | None = None,
) -> TableReader | None:
    """Verify a file and return its reader; None if it has no rows.

    `size` is that of the dataset, if its images are fitted; `hint` that of raw pixels, if the file
    does not say it and it has as many. Raise DataError, which names the file, if it is not a table
    of images.
    """
    name, fingerprint = storage.display(path), storage.fingerprint(path)
    with storage.open(path) as file, as_data_error(name, "a table"):
        table = open_table_file(file)
        schema = table.schema
        for field in schema:
            check_type(name, field.name, field.type)
        repeated = [column for column, count in Counter(schema.names).items() if count > 1]
        if repeated:
            raise DataError(f"{name} has several columns `{repeated[0][:99]}`. Leave one.")
        image_name = _first_of(IMAGE_NAMES, schema)
        if image_name is None:
            raise DataError(f"{name}: column `image` is missing; there are {schema.names[:9]}.")
        if table.starts[-1] < 1:
            return None
        column = image_column(
            name,
            schema.field(image_name),
            schema.metadata or {},
            (batch.column(0) for batch in table.batches_from(0, [image_name], ROWS_PER_BATCH)),
            preparation=preparation,
            size=size,
            hint=hint or size,
        )
        if min(column.shape) < 1:
            raise DataError(f"{name}: images of column `{image_name}` are {column.shape}.")
        file.seek(0)
        sha256 = storage.sha256(path)
        return TableReader(
            storage,
            FileEntry(path=path, bytes=file.size(), sha256=sha256, rows=table.starts[-1]),
            column,
            fingerprint,
            own_ids=ID in schema.names and schema.field(ID).type == pa.int64(),
            label=_label_column(schema),
            class_names=_class_names(name, schema.metadata or {}),
            starts=tuple(table.starts),
        )


def has_images(storage: Storage, path: str) -> bool:
    """Return whether a table has a column with a name of images."""
    with storage.open(path) as file, as_data_error(storage.display(path), "a table"):
        return _first_of(IMAGE_NAMES, open_table_file(file).schema) is not None


def _first_of(names: Sequence[str], schema: pa.Schema) -> str | None:
    return next((name for name in names if name in schema.names), None)


def _label_column(schema: pa.Schema) -> str | None:
    name = _first_of(LABEL_NAMES, schema)
    if name is None:
        return None
    kind = schema.field(name).type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    is_text = any(is_kind(_value_type(kind)) for is_kind in texts)
    return name if is_text or _is_integer(kind) else None


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(_value_type(kind)))


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _class_names(name: str, metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    """Return the class names that we or Hugging Face wrote into the metadata of the schema."""
    names = None
    if b"class_names" in metadata:
        names = json.loads(metadata[b"class_names"])
    elif b"huggingface" in metadata:
        names = _names_of_features(json.loads(metadata[b"huggingface"]))
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
        raise DataError(f"{name}: the class names in its metadata are not a list of strings.")
    if len(set(names)) < len(names):
        raise DataError(
            f"{name}: class names in its metadata are repeated: {', '.join(names)[:99]}."
        )
    return tuple(names)


def _names_of_features(metadata: object) -> object:
    """Return the names of the column of labels in the features of a Hugging Face dataset."""
    try:
        features = metadata["info"]["features"]  # type: ignore[index]
        label = next(features[name] for name in LABEL_NAMES if name in features)
        return label.get("names")
    except (KeyError, TypeError, AttributeError, StopIteration):
        return None
