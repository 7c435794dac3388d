"""Rows of images, read by ranges from files of any supported format.

A `Reader` reads the rows of one file, or of some image files of a folder. `Rows` are the readers of
a split or of a scoring input, in order. Preprocessing and scoring read all their input as `Rows`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pyarrow as pa

from pipeline.arrays import Int64Array, UInt8Array
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.data.readers.labels import Label, LabelCounts
from pipeline.errors import DataError, UserError

BYTES_AT_A_TIME = 256 << 20
"""Images that are large in the file are fitted some at a time: the smaller ones fit into memory."""


Ranges: TypeAlias = Sequence[tuple[int, int]]
"""Ranges of rows: the first row of each, and the row after its last."""


class RejectedRow(NamedTuple):
    """The id of a row that cannot be used, and the reason."""

    id: int
    reason: str


@dataclass(frozen=True)
class RowBatch:
    """Rows in order: ids int64 (N,), images uint8 (N, height, width), labels int64 (N,) or None.

    `columns` are the other columns that were asked for, of N rows each. `rejects` are the rows of
    the range that cannot be used: they are not among the N.
    """

    ids: Int64Array
    images: UInt8Array
    labels: Int64Array | None = None
    columns: pa.Table = field(default_factory=lambda: pa.table({}))
    rejects: tuple[RejectedRow, ...] = ()

    def drop(self, reasons: Mapping[int, str]) -> RowBatch:
        """Return the batch with the rows at these positions moved to `rejects`."""
        if not reasons:
            return self
        keep = np.ones(len(self.ids), bool)
        keep[list(reasons)] = False
        rejects = tuple(RejectedRow(int(self.ids[row]), reasons[row]) for row in sorted(reasons))
        kept = self.take(np.flatnonzero(keep))
        return replace(kept, rejects=(*self.rejects, *rejects))

    def take(self, rows: Int64Array) -> RowBatch:
        """Return the rows at these positions, in this order, with the same rejects."""
        return RowBatch(
            self.ids[rows],
            self.images[rows],
            None if self.labels is None else self.labels[rows],
            self.columns.take(pa.array(rows)) if self.columns.num_columns else self.columns,
            self.rejects,
        )


class Reader(Protocol):
    """A reader of the rows of one file, or of some image files of a folder.

    Readers are pickled and sent to Ray's tasks, so they hold paths, not open files.
    """

    @property
    def storage(self) -> Storage:
        """Where the file is."""
        ...

    @property
    def entry(self) -> FileEntry:
        """The path, size, sha256 and number of rows of the file, or of the files of a folder."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every image."""
        ...

    @property
    def max_runs(self) -> int:
        """The number of places of the file that a task may read in turn without much waste."""
        ...

    @property
    def bytes_per_row(self) -> int:
        """Bytes in memory while a row is decoded, if the file says."""
        ...

    def is_unchanged(self, ranges: Ranges) -> bool:
        """Return whether the files that hold rows of these ranges are as when it was made."""
        ...

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        """Return rows begin..end, with these additional columns.

        `first_id` is the id of row 0, for files whose rows have no ids of their own. Rows that
        cannot be decoded are returned as `rejects`. Raise DataError if the file is damaged, was
        changed, or lacks a column; FileNotFoundError if it was removed.
        """
        ...


class LabelledReader(Reader, Protocol):
    """A reader of a file that may hold the labels of its rows."""

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, if the file says them; a label is then an index."""
        ...

    def count_labels(self) -> LabelCounts:
        """Return how often each label occurs in the file."""
        ...

    def with_classes(self, classes: tuple[Label, ...]) -> Reader:
        """Return the reader that reads labels as their indices in `classes`."""
        ...


@runtime_checkable
class RangesReader(Protocol):
    """A reader that reads many short ranges in one call, which is faster than one by one."""

    def read_ranges(self, ranges: Ranges, first_id: int, columns: Sequence[str]) -> RowBatch:
        """Return the rows of these ranges, in order, as `Reader.read` does."""
        ...


@dataclass(frozen=True)
class Rows:
    """The rows of several readers, in order; all images have one size.

    The id of the first row is `first_id`, for files whose rows have no ids of their own.
    """

    readers: tuple[Reader, ...]
    first_id: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.readers[0].shape

    @property
    def num_rows(self) -> int:
        return self._firsts[-1]

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return tuple(reader.entry for reader in self.readers)

    @property
    def local_paths(self) -> set[str]:
        """The paths of the files that are on a local disk, not in an object store."""
        local = (reader for reader in self.readers if reader.storage.is_local)
        return {reader.storage.uri(reader.entry.path) for reader in local}

    def read(self, start: int, stop: int, columns: Sequence[str] = ()) -> RowBatch:
        """Return rows start..stop, counted over all readers.

        Raise DataError if a file was changed or removed since it was opened.
        """
        return self.read_ranges([(start, stop)], columns)

    def read_ranges(
        self, ranges: Iterable[tuple[int, int]], columns: Sequence[str] = ()
    ) -> RowBatch:
        """Return the rows of these ranges, in order, as `read` does."""
        batches = list[RowBatch]()
        parts = (part for one in ranges for part in self._parts(*one))
        for (_, first), group in groupby(parts, lambda part: (id(part[0]), part[1])):
            of_reader = list(group)
            reader = of_reader[0][0]
            own = [(begin, end) for _, _, begin, end in of_reader]
            try:
                batches += _read_ranges(reader, own, self.first_id + first, columns)
            except FileNotFoundError:
                name = reader.storage.display(reader.entry.path)
                raise source_changed_error(name) from None
        return concat_batches(batches)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Reader, int, int, int]]:
        """Yield the readers of rows start..stop, the first row of each, and the range in it."""
        for first, reader in self._readers_of(start, stop):
            yield reader, first, max(start - first, 0), min(stop - first, reader.entry.rows or 0)

    def require_unchanged(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Raise DataError if a file that holds rows of these ranges was changed since it was
        opened."""
        parts = dict[int, tuple[Reader, list[tuple[int, int]]]]()
        for one in ranges:
            for reader, _, begin, end in self._parts(*one):
                parts.setdefault(id(reader), (reader, []))[1].append((begin, end))
        for reader, own in parts.values():
            require_unchanged(reader, own)

    @cached_property
    def _firsts(self) -> list[int]:
        """The first row of each reader, and the number of all rows."""
        return [0, *accumulate(reader.entry.rows or 0 for reader in self.readers)]

    def _readers_of(self, start: int, stop: int) -> Iterator[tuple[int, Reader]]:
        """Yield the readers that hold rows start..stop, and the first row of each."""
        index = bisect_right(self._firsts, start) - 1
        while index < len(self.readers) and self._firsts[index] < stop:
            yield self._firsts[index], self.readers[index]
            index += 1


def _read_ranges(
    reader: Reader, ranges: Ranges, first_id: int, columns: Sequence[str]
) -> list[RowBatch]:
    rows_at_a_time = max(1, BYTES_AT_A_TIME // reader.bytes_per_row)
    if isinstance(reader, RangesReader) and sum(e - b for b, e in ranges) <= rows_at_a_time:
        return [reader.read_ranges(ranges, first_id, columns)]
    return [
        reader.read(part, min(part + rows_at_a_time, end), first_id, columns)
        for begin, end in ranges
        for part in range(begin, end, rows_at_a_time)
    ]


def concat_batches(batches: Sequence[RowBatch]) -> RowBatch:
    """Return the rows of all batches, in order. Raise DataError if their columns do not match."""
    if len(batches) == 1:
        return batches[0]
    labels = [batch.labels for batch in batches if batch.labels is not None]
    try:
        columns = pa.concat_tables(
            [batch.columns for batch in batches], promote_options="permissive"
        )
    except pa.ArrowException as error:
        raise DataError(f"Columns of the input differ from file to file: {error}.") from None
    return RowBatch(
        np.concatenate([batch.ids for batch in batches]),
        np.concatenate([batch.images for batch in batches]),
        np.concatenate(labels) if labels else None,
        columns,
        tuple(row for batch in batches for row in batch.rejects),
    )


@contextmanager
def as_data_error(name: str, kind: str) -> Iterator[None]:
    """Turn every exception into a DataError that names the file, except the project's own.

    Libraries raise many types for damaged files; none of them is a bug of ours to let through.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(
            f"{name} could not be read as {kind}: {reason}. Run again. If it fails again, the "
            "file is damaged or truncated."
        ) from None


def require_unchanged(reader: Reader, ranges: Ranges = ()) -> None:
    """Raise DataError if a file that holds rows of these ranges was changed since it was opened."""
    if not reader.is_unchanged(ranges):
        raise source_changed_error(reader.storage.display(reader.entry.path))


def source_changed_error(name: str) -> DataError:
    """Return the error for a file that was changed or removed since it was opened."""
    return DataError(f"{name} was changed while it was read. Run again when it is finished.")
