"""Ranges of rows of a Parquet or Arrow IPC file, decoded as streams: row groups need not fit
memory.

A range that begins in the same row group as the previous one, and after it, continues from there.
Otherwise each range would decode its row group from the beginning, and pyarrow writes row groups of
a million rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import accumulate, pairwise
from typing import Protocol

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

BUFFER_BYTES = 1 << 20
"""Read of each column at a time."""

BATCH_ROWS = 10_000
"""Rows decoded at a time, unless they exceed `BATCH_BYTES`."""

BATCH_BYTES = 4 << 20

PARQUET = b"PAR1"

ARROW_FILE = b"ARROW1"

ARROW_STREAM = b"\xff\xff\xff\xff"


class TableFile(Protocol):
    """An open file of rows, in groups that are decoded from their beginning."""

    schema: pa.Schema
    starts: list[int]
    """The first row of each group, and the number of all rows."""

    def batches_from(
        self, group: int, columns: Sequence[str], rows: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows from this group to the end, some `rows` at a time."""
        ...


class ParquetTable:
    """A Parquet file; checksums of its pages, if any, are verified."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._parquet = pq.ParquetFile(
            file, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True
        )
        self.schema = self._parquet.schema_arrow
        metadata = self._parquet.metadata
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        self.starts = [0, *accumulate(group.num_rows for group in groups)]
        if metadata.num_rows != self.starts[-1]:
            raise ValueError(f"its footer says {metadata.num_rows} rows, its row groups others")
        self._row_bytes = [
            max(1, group.total_byte_size // max(1, group.num_rows)) for group in groups
        ]

    def batches_from(
        self, group: int, columns: Sequence[str], rows: int | None
    ) -> Iterator[pa.RecordBatch]:
        if group >= len(self._row_bytes):
            return iter(())
        rows = rows or min(BATCH_ROWS, max(1, BATCH_BYTES // self._row_bytes[group]))
        groups = list(range(group, len(self._row_bytes)))
        batches: Iterator[pa.RecordBatch] = self._parquet.iter_batches(
            rows, row_groups=groups, columns=list(columns), use_threads=False
        )
        return batches


class ArrowTable:
    """An Arrow IPC file, or a stream as Hugging Face saves; record batches are its groups."""

    def __init__(self, file: pa.NativeFile) -> None:
        start = file.read(len(ARROW_FILE))
        file.seek(0)
        if start == ARROW_FILE:
            reader = pyarrow.ipc.open_file(file)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        else:
            reader = pyarrow.ipc.open_stream(file)
            self._batches = list(reader)
        self.schema = reader.schema
        self.starts = [0, *accumulate(batch.num_rows for batch in self._batches)]

    def batches_from(
        self, group: int, columns: Sequence[str], rows: int | None
    ) -> Iterator[pa.RecordBatch]:
        for batch in self._batches[group:]:
            selected = batch.select(list(columns))
            for start in range(0, selected.num_rows, rows or BATCH_ROWS):
                yield selected[start : start + (rows or BATCH_ROWS)]


def is_table(start: bytes) -> bool:
    """Return whether a file begins as Parquet or Arrow IPC does."""
    return start.startswith((PARQUET, ARROW_FILE, ARROW_STREAM))


def open_table_file(file: pa.NativeFile) -> OpenTable:
    """Open a Parquet or Arrow IPC file, by its first bytes."""
    start = file.read(len(PARQUET))
    file.seek(0)
    return OpenTable(ParquetTable(file) if start == PARQUET else ArrowTable(file))


class OpenTable:
    """An open table, read from its beginning."""

    def __init__(self, file: TableFile) -> None:
        self.file = file
        self.schema: pa.Schema = file.schema
        self.num_rows = file.starts[-1]

    @property
    def max_group_rows(self) -> int:
        starts = self.file.starts
        sizes = (stop - start for start, stop in pairwise(starts))
        return max(sizes, default=1)

    def batches(self, columns: Sequence[str], rows: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield all rows of these columns."""
        return self.file.batches_from(0, columns, rows)


class TableStream:
    """Some columns of an open file, for one thread; `missing` are those that the file lacks."""

    def __init__(
        self, source: AbstractContextManager[pa.NativeFile], columns: Sequence[str]
    ) -> None:
        # Closes the file when this stream is garbage.
        self._stack = ExitStack()
        self._file = open_table_file(self._stack.enter_context(source)).file
        self._columns = list(columns)
        self.missing = [name for name in columns if name not in self._file.schema.names]
        # The row that the stream has reached; -1 if it must start anew.
        self.position = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        # The rows of the current batch that are not taken yet.
        self._rest: pa.RecordBatch | None = None

    def can_continue(self, begin: int) -> bool:
        """Return whether the stream stands in the row group of this row, and not after the row."""
        group_start, _ = self._group_of(begin)
        return group_start <= self.position <= begin

    def read(self, begin: int, end: int) -> pa.Table:
        """Return rows begin..end as one chunk. Raise ValueError if the file has fewer."""
        position = self.position
        # If reading fails, the next range starts anew.
        self.position = -1
        group_start, group = self._group_of(begin)
        if not group_start <= position <= begin:
            position = group_start
            self._rest = None
            self._batches = self._file.batches_from(group, self._columns, None)
        for _ in self._take(begin - position):
            pass  # Skip the rows before the range.
        batches = list(self._take(end - begin))
        self.position = end
        return pa.Table.from_batches(batches).combine_chunks()

    def _group_of(self, row: int) -> tuple[int, int]:
        """Return the first row and the index of the row group that holds this row."""
        starts = self._file.starts
        for group, (start, stop) in enumerate(zip(starts, starts[1:], strict=False)):
            if start <= row < stop:
                return start, group
        raise ValueError(f"it has {starts[-1]} rows, but row {row} is expected")

    def _take(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the next rows, in slices of the decoded batches."""
        while rows:
            batch = next(self._batches, None) if self._rest is None else self._rest
            if batch is None:
                raise ValueError(f"it ends {rows} rows before the end of the range")
            taken = batch[:rows]
            self._rest = batch[rows:] if len(batch) > rows else None
            rows -= len(taken)
            yield taken
