"""A reader of CSV files of pixels, as Kaggle has them: `label,pixel0,...`, a row per image."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.contract import AS_IS, Preparation
from pipeline.data.readers.labels import Label, LabelCounts, Labels, count_labels, index_labels
from pipeline.data.readers.pixels import image_axes, to_images
from pipeline.data.readers.rows import RowBatch, require_unchanged
from pipeline.data.readers.table_columns import LABEL_NAMES, label_values
from pipeline.data.readers.tables import as_data_error
from pipeline.errors import DataError
from pipeline.images.prepare import prepare_arrays

CHUNK_BYTES = 1 << 20
"""Read at a time."""

ROWS_PER_MARK = 500
"""A range of rows is parsed from the mark before it."""

MAX_LINE_BYTES = 1 << 24


@dataclass(frozen=True)
class CsvReader:
    """A reader of one file.

    `marks` are the positions in bytes of every `ROWS_PER_MARK`-th row, and the end. `names` are
    those of its columns, `pixels` those that are pixels, in their order.
    """

    storage: Storage
    entry: FileEntry
    shape: tuple[int, int]
    fingerprint: Fingerprint
    marks: tuple[int, ...]
    names: tuple[str, ...]
    pixels: tuple[str, ...]
    axes: tuple[int, int, int]
    preparation: Preparation = AS_IS
    label: str | None = None
    text_labels: bool = False
    classes: tuple[Label, ...] = ()

    max_runs = 16

    def current_fingerprint(self) -> Fingerprint:
        return self.storage.fingerprint(self.entry.path)

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        name = self.storage.display(self.entry.path)
        if missing := [column for column in columns if column not in self.names]:
            raise DataError(f"{name} has no column {missing[0]!r}.")
        table = self._parse(begin, end)
        reasons = dict[int, str]()
        numbers = np.stack(
            [np.asarray(table[column].fill_null(-1)) for column in self.pixels], axis=1
        )
        images = to_images(numbers, self.axes, self.preparation, reasons)
        images = prepare_arrays(images, self.preparation, self.shape)
        ids = np.arange(first_id + begin, first_id + end, dtype=np.int64)
        labels = None
        if self.label and self.classes:
            values = _labels(table[self.label], text=self.text_labels)
            labels, unknown = index_labels(values, self.classes)
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
        counts = dict[Label, int]()
        rows = self.entry.rows or 0
        step = 20 * ROWS_PER_MARK
        assert self.label
        for begin in range(0, rows, step):
            table = self._parse(begin, min(begin + step, rows), only=[self.label])
            values = _labels(table[self.label], text=self.text_labels)
            for label, count in count_labels(values).items():
                counts[label] = counts.get(label, 0) + count
        return counts

    def _parse(self, begin: int, end: int, only: Sequence[str] | None = None) -> pa.Table:
        first_mark = begin // ROWS_PER_MARK
        last_mark = -(-end // ROWS_PER_MARK)
        start, stop = self.marks[first_mark], self.marks[last_mark]
        name = self.storage.display(self.entry.path)
        with as_data_error(name), self.storage.open(self.entry.path) as file:
            require_unchanged(self)
            file.seek(start)
            lines = file.read(stop - start)
            table = _parse_lines(lines, self.names, self._types(), only)
            rows = min((last_mark * ROWS_PER_MARK), self.entry.rows or 0)
            if len(table) != rows - first_mark * ROWS_PER_MARK:
                raise ValueError(f"rows {begin} to {end} are not one line each")
        offset = begin - first_mark * ROWS_PER_MARK
        return table.slice(offset, end - begin)

    def _types(self) -> dict[str, pa.DataType]:
        types: dict[str, pa.DataType] = dict.fromkeys(self.pixels, pa.float32())
        if self.label:
            types[self.label] = pa.string() if self.text_labels else pa.float64()
        return types


def _labels(column: pa.ChunkedArray, *, text: bool) -> Labels:
    if text:
        return label_values(column)
    numbers = np.asarray(column.fill_null(-1))
    return np.where(numbers == np.floor(numbers), numbers, -1).astype(np.int64)


def open_csv(
    storage: Storage,
    path: str,
    *,
    preparation: Preparation = AS_IS,
    size: tuple[int, int] | None = None,
    expected: tuple[int, int] | None = None,
) -> CsvReader:
    """Read a file once from beginning to end, and return its reader.

    All columns but those of labels and ids are pixels. A file without a header has its label first
    if the other columns make an image. Raise DataError if it is not such a file.
    """
    name, fingerprint = storage.display(path), storage.fingerprint(path)
    with storage.open(path) as file, as_data_error(name):
        size_bytes = file.size()
        header = _first_line(file)
        names, has_header = _column_names(header, name)
        start = len(header) if has_header else 0
        file.seek(0)
        marks, rows, sha256 = _scan(file, start)
        if rows < 1:
            raise DataError(f"{name} has no rows.")
        file.seek(start)
        first = _first_line(file)
    label = next((column for column in names if column.lower() in LABEL_NAMES), None)
    pixels = tuple(column for column in names if column != label and column.lower() != "id")
    axes = image_axes((len(pixels),), name, expected)
    text = False
    if label:
        value = first.decode("utf-8", "replace").split(",")[names.index(label)].strip().strip('"')
        text = not _is_number(value)
    return CsvReader(
        storage,
        FileEntry(path=path, bytes=size_bytes, sha256=sha256, rows=rows),
        size or axes[:2],
        fingerprint,
        marks,
        tuple(names),
        pixels,
        axes,
        preparation,
        label,
        text,
    )


def _first_line(file: pa.NativeFile) -> bytes:
    start = file.tell()
    line = bytes(file.read(CHUNK_BYTES))
    while b"\n" not in line and (more := file.read(CHUNK_BYTES)):
        line += more
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"its first line is longer than {MAX_LINE_BYTES:,} bytes")
    file.seek(start)
    return line[: line.find(b"\n") + 1] or line


def _column_names(header: bytes, name: str) -> tuple[list[str], bool]:
    """Return the names of the columns, and whether the first line holds them."""
    values = [value.strip().strip('"') for value in header.decode("utf-8-sig").split(",")]
    if not all(_is_number(value) for value in values[1:]):
        if len(set(values)) != len(values):
            raise DataError(f"{name} has several columns of one name. Leave one.")
        return values, True
    side = (len(values) - 1) ** 0.5
    first = "label" if side == int(side) else "pixel"
    return [first, *(f"pixel{number}" for number in range(len(values) - 1))], False


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _scan(file: pa.NativeFile, start: int) -> tuple[tuple[int, ...], int, str]:
    """Return the marks, the number of rows, and the sha256 of a file."""
    sha256 = hashlib.sha256()
    marks, rows, position, last = [start], 0, 0, b"\n"
    while chunk := file.read(CHUNK_BYTES):
        sha256.update(chunk)
        offset = max(0, start - position)
        ends = np.flatnonzero(np.frombuffer(chunk, np.uint8)[offset:] == ord("\n")) + offset + 1
        first = -(-(rows + 1) // ROWS_PER_MARK) * ROWS_PER_MARK - rows - 1
        marks += [position + int(end) for end in ends[first::ROWS_PER_MARK]]
        rows += len(ends)
        position += len(chunk)
        last = chunk[-1:]
    if last != b"\n" and position > start:
        rows += 1
    if marks[-1] != position:
        marks.append(position)
    return tuple(marks), rows, sha256.hexdigest()


def _parse_lines(
    lines: bytes,
    names: Sequence[str],
    types: dict[str, pa.DataType],
    only: Sequence[str] | None,
) -> pa.Table:
    table: pa.Table = pyarrow.csv.read_csv(
        io.BytesIO(lines),
        read_options=pyarrow.csv.ReadOptions(
            column_names=list(names), use_threads=False, block_size=max(len(lines), 1)
        ),
        parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=types, include_columns=list(only or ()), strings_can_be_null=True
        ),
    )
    return table
