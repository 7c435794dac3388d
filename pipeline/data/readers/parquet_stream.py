"""Ranges of rows of a Parquet file, decoded as a stream: memory does not grow with its row groups.

A range after the last one, in the same row group, goes on from there. Else each range of a row
group, which pyarrow makes of a million rows, would decode the group from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack

import pyarrow as pa
import pyarrow.parquet as pq

BUFFER_BYTES = 4 << 20
"""So much of a column is read at a time."""

BATCH_ROWS, BATCH_BYTES = 10_000, 8 << 20
"""So many rows are decoded at a time, or fewer if they are large."""


class ParquetStream:
    """Some columns of a file that stays open, for one thread; `missing` are those it lacks."""

    def __init__(
        self, source: AbstractContextManager[pa.NativeFile], columns: Sequence[str]
    ) -> None:
        self._open = ExitStack()
        self._parquet = open_file(self._open.enter_context(source))
        self._columns = list(columns)
        self.missing = [name for name in columns if name not in self._parquet.schema_arrow.names]
        self._at = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None

    def read(self, begin: int, end: int) -> pa.Table:
        """The rows of a range; ValueError where they are not all there."""
        # Where reading fails, the next begins anew.
        at, self._at = self._at, -1
        start, group = self._group_of(begin)
        if not start <= at <= begin:
            at = start
            self._rest, self._batches = None, self._from(group)
        for _ in self._take(begin - at):
            pass
        batches = list(self._take(end - begin))
        self._at = end
        return pa.Table.from_batches(batches).combine_chunks()

    def _group_of(self, row: int) -> tuple[int, int]:
        """The first row of the row group that holds a row, and its number."""
        first = 0
        for group in range(self._parquet.num_row_groups):
            rows = self._parquet.metadata.row_group(group).num_rows
            if row < first + rows:
                return first, group
            first += rows
        raise ValueError(f"it has {first} rows, but is to have more than {row}")

    def _from(self, group: int) -> Iterator[pa.RecordBatch]:
        found = self._parquet.metadata.row_group(group)
        row_bytes = max(1, found.total_byte_size // found.num_rows)
        rows = min(BATCH_ROWS, max(1, BATCH_BYTES // row_bytes))
        groups = list(range(group, self._parquet.num_row_groups))
        batches: Iterator[pa.RecordBatch] = self._parquet.iter_batches(
            rows, row_groups=groups, columns=self._columns, use_threads=False
        )
        return batches

    def _take(self, rows: int) -> Iterator[pa.RecordBatch]:
        """The next rows."""
        while rows:
            batch = next(self._batches, None) if self._rest is None else self._rest
            if batch is None:
                raise ValueError(f"it ends {rows} rows before those that it says it has")
            taken = batch[:rows]
            self._rest = batch[rows:] if len(batch) > rows else None
            rows -= len(taken)
            yield taken


def open_file(file: pa.NativeFile) -> pq.ParquetFile:
    """A file that is read a few pages at a time, verified where they have checksums."""
    return pq.ParquetFile(
        file, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True
    )
