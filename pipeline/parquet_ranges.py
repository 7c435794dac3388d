"""Ranges of rows of a Parquet file, decoded as a stream: memory does not grow with its row groups.

A range that begins where the last one ended goes on from there. Else each range of a row group,
which pyarrow makes of a million rows, would decode the group from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack

import pyarrow as pa
import pyarrow.parquet as pq

BUFFER_BYTES = 4 << 20
"""Of each column are read at a time."""


class ParquetRanges:
    """Some columns of a file that stays open, for one thread; `missing` are those it lacks."""

    def __init__(
        self, source: AbstractContextManager[pa.NativeFile], columns: Sequence[str]
    ) -> None:
        self._open = ExitStack()
        self._parquet = opened(self._open.enter_context(source))
        self._columns = list(columns)
        self.missing = [name for name in columns if name not in self._parquet.schema_arrow.names]
        self._at = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None

    def read(self, begin: int, end: int) -> pa.Table:
        """The rows of a range; ValueError where they are not all there."""
        if begin != self._at:
            self._seek(begin, end - begin)
        # Where reading fails, the next begins anew.
        self._at = -1
        batches = list(self._take(end - begin))
        self._at = end
        return pa.Table.from_batches(batches).combine_chunks()

    def _seek(self, begin: int, batch_rows: int) -> None:
        """Goes to a row, from the start of its row group."""
        metadata, first, group = self._parquet.metadata, 0, 0
        while first + (rows := metadata.row_group(group).num_rows) <= begin:
            first, group = first + rows, group + 1
        self._rest = None
        self._batches = self._parquet.iter_batches(
            batch_rows,
            row_groups=list(range(group, metadata.num_row_groups)),
            columns=self._columns,
            use_threads=False,
        )
        for _ in self._take(begin - first):
            pass

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


def opened(file: pa.NativeFile) -> pq.ParquetFile:
    """A file that is read a few pages at a time, verified where they have checksums."""
    return pq.ParquetFile(
        file, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True
    )
