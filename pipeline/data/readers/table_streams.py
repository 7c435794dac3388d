"""Ranges of rows of a Parquet or Arrow IPC file, decoded as streams: row groups need not fit
memory.

A range that begins in the same row group as the previous one, and after it, continues from there.
Otherwise each range would decode its row group from the beginning, and pyarrow writes row groups of
a million rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from itertools import accumulate
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

    @property
    def starts(self) -> Sequence[int]:
        """The first row of each group, and the number of all rows."""
        ...

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
    """An Arrow IPC file; its record batches are the groups."""

    def __init__(self, file: pa.NativeFile, starts: Sequence[int]) -> None:
        self._reader = pyarrow.ipc.open_file(file)
        self.schema = self._reader.schema
        self._starts = starts

    @cached_property
    def starts(self) -> Sequence[int]:
        # The file does not say how many rows a record batch has. One is in memory at a time.
        groups = range(self._reader.num_record_batches)
        rows = (self._reader.get_batch(group).num_rows for group in groups)
        return self._starts or [0, *accumulate(rows)]

    def batches_from(
        self, group: int, columns: Sequence[str], rows: int | None
    ) -> Iterator[pa.RecordBatch]:
        for index in range(group, self._reader.num_record_batches):
            yield from _slices(self._reader.get_batch(index), columns, rows)


class ArrowStream:
    """An Arrow IPC stream, as Hugging Face saves; it can only be read from its beginning."""

    def __init__(self, file: pa.NativeFile, starts: Sequence[int]) -> None:
        self._file = file
        self.schema = pyarrow.ipc.open_stream(file).schema
        self._starts = starts

    @cached_property
    def starts(self) -> Sequence[int]:
        return self._starts or [0, sum(batch.num_rows for batch in self._read())]

    def batches_from(
        self, group: int, columns: Sequence[str], rows: int | None
    ) -> Iterator[pa.RecordBatch]:
        for batch in self._read():
            yield from _slices(batch, columns, rows)

    def _read(self) -> Iterator[pa.RecordBatch]:
        self._file.seek(0)
        yield from pyarrow.ipc.open_stream(self._file)


def _slices(
    batch: pa.RecordBatch, columns: Sequence[str], rows: int | None
) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a record batch, some rows at a time."""
    selected = batch.select(list(columns))
    # IPC is not checked by reading it: offsets may point outside of the buffers.
    selected.validate(full=True)
    step = rows or BATCH_ROWS
    for start in range(0, selected.num_rows, step):
        yield selected[start : start + step]


def is_table(start: bytes) -> bool:
    """Return whether a file begins as Parquet or Arrow IPC does."""
    return start.startswith((PARQUET, ARROW_FILE, ARROW_STREAM))


def open_table_file(file: pa.NativeFile, starts: Sequence[int] = ()) -> TableFile:
    """Open a Parquet or Arrow IPC file, by its first bytes.

    `starts` are those of the file, if they are known; otherwise Arrow IPC is read for them.
    """
    start = file.read(len(ARROW_FILE))
    file.seek(0)
    if start.startswith(PARQUET):
        return ParquetTable(file)
    if start == ARROW_FILE:
        return ArrowTable(file, starts)
    if start.startswith(ARROW_STREAM):
        return ArrowStream(file, starts)
    raise ValueError("it begins neither as Parquet nor as Arrow IPC does")


class TableStream:
    """Some columns of an open file, for one thread; `missing` are those that the file lacks."""

    def __init__(
        self,
        source: AbstractContextManager[pa.NativeFile],
        columns: Sequence[str],
        starts: Sequence[int],
    ) -> None:
        # Closes the file when this stream is garbage.
        self._stack = ExitStack()
        self._file = open_table_file(self._stack.enter_context(source), starts)
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
        if row >= starts[-1]:
            raise ValueError(f"it has {starts[-1]} rows, but row {row} is expected")
        group = bisect_right(starts, row) - 1
        return starts[group], group

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
