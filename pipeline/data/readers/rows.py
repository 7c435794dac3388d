"""Rows of images, read by ranges from files of any supported format.

A `Reader` reads the rows of one file, or of some image files of a folder. `Rows` are the readers of
a split or of a scoring input, in order. Preprocessing and scoring read all their input as `Rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from pipeline.arrays import Int64Array, UInt8Array
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.errors import DataError


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
        return RowBatch(
            self.ids[keep],
            self.images[keep],
            None if self.labels is None else self.labels[keep],
            self.columns.filter(pa.array(keep)) if self.columns.num_columns else self.columns,
            (*self.rejects, *rejects),
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
        """The path, size, sha256 and number of rows of the file."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every image."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the file when the reader was made."""
        ...

    def current_fingerprint(self) -> Fingerprint:
        """Return the fingerprint of the file as it is now."""
        ...

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        """Return rows begin..end, with these additional columns.

        `first_id` is the id of row 0, for files whose rows have no ids of their own. Rows that
        cannot be decoded are returned as `rejects`. Raise DataError if the file is damaged, was
        changed, or lacks a column; FileNotFoundError if it was removed.
        """
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
        return sum(reader.entry.rows or 0 for reader in self.readers)

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
        batches = list[RowBatch]()
        # The number of the rows in the readers before this one.
        first = 0
        for reader in self.readers:
            rows = reader.entry.rows or 0
            begin = max(start - first, 0)
            end = min(stop - first, rows)
            if begin < end:
                try:
                    batches.append(reader.read(begin, end, self.first_id + first, columns))
                except FileNotFoundError:
                    name = reader.storage.display(reader.entry.path)
                    raise source_changed_error(name) from None
            first += rows
        return concat_batches(batches)

    def slice(self, start: int, stop: int) -> tuple[Rows, int]:
        """Return only the readers that hold rows start..stop, and the position of `start` in them.

        A task is sent the readers of its partitions, not those of the whole source.
        """
        kept = list[Reader]()
        first = 0
        rows_before = 0
        for reader in self.readers:
            rows = reader.entry.rows or 0
            if first + rows <= start:
                rows_before += rows
            elif first < stop:
                kept.append(reader)
            first += rows
        return Rows(tuple(kept), self.first_id + rows_before), start - rows_before

    def require_unchanged(self) -> None:
        """Raise DataError if a file was changed since it was opened."""
        for reader in self.readers:
            require_unchanged(reader)


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


def require_unchanged(reader: Reader) -> None:
    """Raise DataError if the reader's file was changed since it was opened."""
    if reader.current_fingerprint() != reader.fingerprint:
        raise source_changed_error(reader.storage.display(reader.entry.path))


def source_changed_error(name: str) -> DataError:
    """Return the error for a file that was changed or removed since it was opened."""
    return DataError(f"{name} was changed while it was read. Run again when it is finished.")


def require_one_shape(readers: Sequence[Reader]) -> None:
    """Raise DataError if the readers' images differ in size."""
    first = readers[0]
    for reader in readers:
        if reader.shape != first.shape:
            sizes = [f"{height} x {width}" for height, width in (first.shape, reader.shape)]
            raise DataError(
                f"{first.storage.display(first.entry.path)} has images of {sizes[0]}, but "
                f"{reader.storage.display(reader.entry.path)} of {sizes[1]}. All must be of one "
                "size."
            )
