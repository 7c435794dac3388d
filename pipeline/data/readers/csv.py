"""A reader of CSV files of pixels, as Kaggle has them: `label,pixel0,...`, a row per image."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.contract import AS_IS, Preparation
from pipeline.data.readers.labels import (
    Label,
    LabelCounts,
    add_counts,
    count_labels,
    index_labels,
)
from pipeline.data.readers.pixels import image_axes, prepare_rows, to_images
from pipeline.data.readers.rows import Ranges, RowBatch, as_data_error, require_unchanged
from pipeline.data.readers.table_columns import LABEL_NAMES, label_values
from pipeline.errors import DataError

CHUNK_BYTES = 1 << 20
"""Read at a time; a range of rows is parsed from the last line that begins in the chunk before."""

MAX_LINE_BYTES = 1 << 26
"""16 million pixels of four characters, the most that an image file may have as well."""

PIXEL_NAME = re.compile(r"\d$")
"""Columns of pixels end in a number: `pixel0`, `28x28`."""


class Marks(NamedTuple):
    """Rows at which parsing may begin, ascending, and their positions in bytes; last is the end."""

    rows: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class CsvReader:
    """A reader of one file.

    `names` are those of its columns, `pixels` those that are pixels, in their order.
    """

    storage: Storage
    entry: FileEntry
    shape: tuple[int, int]
    fingerprint: Fingerprint
    marks: Marks
    names: tuple[str, ...]
    pixels: tuple[str, ...]
    axes: tuple[int, int, int]
    preparation: Preparation = AS_IS
    label: str | None = None
    classes: tuple[Label, ...] = ()

    max_runs = 16

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.storage.display(self.entry.path)

    @property
    def bytes_per_row(self) -> int:
        # The text, and numbers of four bytes twice.
        return 12 * len(self.pixels)

    def is_unchanged(self, ranges: Ranges) -> bool:
        return self.storage.fingerprint(self.entry.path) == self.fingerprint

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        if missing := [column for column in columns if column not in self.names]:
            raise DataError(f"{self.name} has no column {missing[0]!r}.")
        table = self._parse(begin, end)
        reasons = dict[int, str]()
        # A missing pixel becomes -1, and so is invalid.
        pixels = [np.asarray(table[column].fill_null(-1)) for column in self.pixels]
        images = to_images(np.stack(pixels, axis=1), self.axes, self.preparation, reasons)
        images = prepare_rows(images, self.preparation, self.shape, reasons)
        ids = np.arange(first_id + begin, first_id + end, dtype=np.int64)
        labels = None
        if self.label and self.classes:
            labels, unknown = index_labels(label_values(table[self.label]), self.classes)
            reasons |= unknown
        return RowBatch(ids, images, labels, table.select(list(columns))).drop(reasons)

    @property
    def labelled(self) -> bool:
        return self.label is not None

    @property
    def class_names(self) -> None:
        return None

    def with_classes(self, classes: tuple[Label, ...]) -> CsvReader:
        return replace(self, classes=classes)

    def count_labels(self) -> LabelCounts:
        """Return how often each label occurs."""
        counts = Counter[Label]()
        assert self.label
        for begin, end in zip(self.marks.rows, self.marks.rows[1:], strict=False):
            table = self._parse(begin, end, only=[self.label])
            add_counts(counts, count_labels(label_values(table[self.label])), self.name)
        return counts

    def _parse(self, begin: int, end: int, only: Sequence[str] = ()) -> pa.Table:
        """Return these rows, of all columns or some `only`."""
        first = bisect_right(self.marks.rows, begin) - 1
        last = bisect_left(self.marks.rows, end)
        first_row, last_row = self.marks.rows[first], self.marks.rows[last]
        start, stop = self.marks.positions[first], self.marks.positions[last]
        with self.storage.open(self.entry.path) as file, as_data_error(self.name, "CSV"):
            require_unchanged(self)
            file.seek(start)
            table = _parse_lines(file.read(stop - start), self.names, self._types(), only)
            if len(table) != last_row - first_row:
                raise ValueError(
                    f"rows {first_row} to {last_row} are {len(table)} lines, but a row is one line"
                )
        return table.slice(begin - first_row, end - begin)

    def _types(self) -> dict[str, pa.DataType]:
        # Otherwise the type of a column would be guessed for each range of rows by itself.
        types: dict[str, pa.DataType] = dict.fromkeys(self.names, pa.string())
        return types | dict.fromkeys(self.pixels, pa.float32())


def open_csv(
    storage: Storage,
    path: str,
    *,
    preparation: Preparation = AS_IS,
    size: tuple[int, int] | None = None,
    hint: tuple[int, int] | None = None,
) -> CsvReader | None:
    """Read a file once, and return its reader; None if it has no rows.

    `size` is that of the dataset, if its images are fitted; `hint` that of the pixels, if it
    has as many. Raise DataError, which names the file, if it does not hold rows of pixels.
    """
    name, fingerprint = storage.display(path), storage.fingerprint(path)
    with storage.open(path) as file, as_data_error(name, "CSV"):
        size_bytes = file.size()
        first = _first_line(file)
        names, has_header = _column_names(first, name)
        marks, sha256 = _scan(file, len(first) if has_header else 0)
        if marks.rows[-1] < 1:
            return None
    label = next((column for column in names if column.lower() in LABEL_NAMES), None)
    pixels = tuple(column for column in names if PIXEL_NAME.search(column))
    if not pixels:
        raise DataError(
            f"{name} has no columns of pixels, whose names end in a number, such as pixel0. Its "
            f"columns are {', '.join(names[:9])[:99]}."
        )
    axes = image_axes((len(pixels),), name, hint=hint or size)
    return CsvReader(
        storage,
        FileEntry(path=path, bytes=size_bytes, sha256=sha256, rows=marks.rows[-1]),
        size or axes[:2],
        fingerprint,
        marks,
        tuple(names),
        pixels,
        axes,
        preparation,
        label,
    )


def _first_line(file: pa.NativeFile) -> bytes:
    """Return the line that begins at the position of the file."""
    line = bytearray()
    while chunk := file.read(CHUNK_BYTES):
        end = chunk.find(b"\n") + 1
        line += chunk[: end or None]
        if end:
            break
        _check_line(len(line))
    return bytes(line)


def _check_line(length: int) -> None:
    if length > MAX_LINE_BYTES:
        raise ValueError(f"a line is longer than {MAX_LINE_BYTES:,} bytes")


def _values(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8-sig")]), [])


def _column_names(line: bytes, name: str) -> tuple[list[str], bool]:
    """Return the names of the columns, and whether the first line of the file holds them.

    Without them, the first of one column more than the pixels of a square is the label. Numbers
    that count up from 0 or 1 are names, as pandas writes them.
    """
    values = [value.strip() for value in _values(line)]
    counted = len(values) > 2 and any(
        values[1:] == list(map(str, range(start, start + len(values) - 1))) for start in (0, 1)
    )
    if not all(_is_number(value) for value in values[0 if counted else 1 :]):
        if len(set(values)) != len(values):
            raise DataError(f"{name} has several columns of one name. Leave one.")
        return values, True
    side = max(0, len(values) - 1) ** 0.5
    names = [f"pixel{number}" for number in range(len(values))]
    return (["label", *names[:-1]] if side == int(side) else names), counted


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _scan(file: pa.NativeFile, start: int) -> tuple[Marks, str]:
    """Return the marks, after a header of `start` bytes, and the sha256 of a file.

    Blank lines at its end are left out.
    """
    end_of_rows = _find_end(file)
    file.seek(0)
    sha256 = hashlib.sha256()
    rows, positions = [0], [start]
    position, num_rows = 0, -1 if start else 0
    while chunk := file.read(CHUNK_BYTES):
        sha256.update(chunk)
        chunk = chunk[: max(0, end_of_rows - position)]
        num_rows += chunk.count(b"\n")
        end = position + chunk.rfind(b"\n") + 1
        position += len(chunk)
        if num_rows > rows[-1] and end > positions[-1]:
            rows.append(num_rows)
            positions.append(end)
        _check_line(position - positions[-1])
    if position > positions[-1]:
        # The last line has no end.
        rows.append(rows[-1] + 1)
        positions.append(position)
    return Marks(tuple(rows), tuple(positions)), sha256.hexdigest()


def _find_end(file: pa.NativeFile) -> int:
    """Return the position after the last byte that ends no line."""
    end: int = file.size()
    while end:
        start = max(0, end - CHUNK_BYTES)
        file.seek(start)
        if content := file.read(end - start).rstrip(b"\r\n"):
            return start + len(content)
        end = start
    return 0


def _parse_lines(
    lines: bytes,
    names: Sequence[str],
    types: dict[str, pa.DataType],
    only: Sequence[str],
) -> pa.Table:
    table: pa.Table = pyarrow.csv.read_csv(
        io.BytesIO(lines),
        read_options=pyarrow.csv.ReadOptions(
            column_names=list(names), use_threads=False, block_size=max(len(lines), 1)
        ),
        parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=types, include_columns=list(only), strings_can_be_null=True
        ),
    )
    return table
