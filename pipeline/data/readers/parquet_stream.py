"""Ranges of rows of a Parquet file, decoded as a stream: row groups need not fit memory.

A range that begins in the same row group as the previous one, and after it, continues from there.
Otherwise each range would decode its row group from the beginning, and pyarrow writes row groups of
a million rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack

import pyarrow as pa
import pyarrow.parquet as pq

BUFFER_BYTES = 4 << 20
"""Read of each column at a time."""

BATCH_ROWS = 10_000
"""Rows decoded at a time, unless they exceed `BATCH_BYTES`."""

BATCH_BYTES = 8 << 20


class ParquetStream:
    """Some columns of an open file, for one thread; `missing` are those that the file lacks."""

    def __init__(
        self, source: AbstractContextManager[pa.NativeFile], columns: Sequence[str]
    ) -> None:
        # Closes the file when this stream is garbage.
        self._stack = ExitStack()
        self._parquet = open_file(self._stack.enter_context(source))
        self._columns = list(columns)
        self.missing = [name for name in columns if name not in self._parquet.schema_arrow.names]
        # The row that the stream has reached; -1 if it must start anew.
        self._position = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        # The rows of the current batch that are not taken yet.
        self._rest: pa.RecordBatch | None = None

    def read(self, begin: int, end: int) -> pa.Table:
        """Return rows begin..end as one chunk. Raise ValueError if the file has fewer."""
        position = self._position
        # If reading fails, the next range starts anew.
        self._position = -1
        group_start, group = self._group_of(begin)
        if not group_start <= position <= begin:
            position = group_start
            self._rest = None
            self._batches = self._iter_from(group)
        for _ in self._take(begin - position):
            pass  # Skip the rows before the range.
        batches = list(self._take(end - begin))
        self._position = end
        return pa.Table.from_batches(batches).combine_chunks()

    def _group_of(self, row: int) -> tuple[int, int]:
        """Return the first row and the index of the row group that holds this row."""
        first = 0
        for group in range(self._parquet.num_row_groups):
            rows = self._parquet.metadata.row_group(group).num_rows
            if row < first + rows:
                return first, group
            first += rows
        raise ValueError(f"it has {first} rows, but row {row} is expected")

    def _iter_from(self, group: int) -> Iterator[pa.RecordBatch]:
        """Return the batches from this row group to the end of the file."""
        metadata = self._parquet.metadata.row_group(group)
        row_bytes = max(1, metadata.total_byte_size // metadata.num_rows)
        rows = min(BATCH_ROWS, max(1, BATCH_BYTES // row_bytes))
        groups = list(range(group, self._parquet.num_row_groups))
        batches: Iterator[pa.RecordBatch] = self._parquet.iter_batches(
            rows, row_groups=groups, columns=self._columns, use_threads=False
        )
        return batches

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


def open_file(file: pa.NativeFile) -> pq.ParquetFile:
    """Return a Parquet file that is read some pages at a time; checksums, if any, are verified."""
    return pq.ParquetFile(
        file, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True
    )
