"""Rows of images in files of any kind that is known here, read by ranges, with what is wrong apart.

A `Part` is a file, or some pictures of a folder; `Rows` are the parts in order. Preprocessing and
scoring read all they read through these.
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
    """A row that is of no use, by its id, and why."""

    id: int
    reason: str


@dataclass(frozen=True)
class RowBatch:
    """Rows in order: ids int64 (N,), images uint8 (N, height, width), labels int64 (N,) if any.

    `columns` are others that were asked for; `bad` are rows of the range that are not in N.
    """

    ids: Int64Array
    images: UInt8Array
    labels: Int64Array | None = None
    columns: pa.Table = field(default_factory=lambda: pa.table({}))
    bad: tuple[RejectedRow, ...] = ()

    def drop(self, reasons: Mapping[int, str]) -> RowBatch:
        """The same without the rows at these positions, which are bad for these reasons."""
        if not reasons:
            return self
        keep = np.ones(len(self.ids), bool)
        keep[list(reasons)] = False
        bad = tuple(RejectedRow(int(self.ids[at]), reasons[at]) for at in sorted(reasons))
        return RowBatch(
            self.ids[keep],
            self.images[keep],
            None if self.labels is None else self.labels[keep],
            self.columns.filter(pa.array(keep)) if self.columns.num_columns else self.columns,
            (*self.bad, *bad),
        )


class Reader(Protocol):
    """Rows of one file, or of pictures of a folder: `entry` has their number and their digest."""

    @property
    def storage(self) -> Storage: ...

    @property
    def entry(self) -> FileEntry: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def fingerprint(self) -> Fingerprint:
        """That of when it was opened."""
        ...

    def current_fingerprint(self) -> Fingerprint: ...

    def read(self, begin: int, end: int, first: int, columns: Sequence[str]) -> RowBatch:
        """A range of the rows; those without ids of their own have `first` + their position."""
        ...


@dataclass(frozen=True)
class Rows:
    """The rows of some parts, which have images of one size; the first position is `first_id`."""

    parts: tuple[Reader, ...]
    first_id: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape

    @property
    def num_rows(self) -> int:
        return sum(part.entry.rows or 0 for part in self.parts)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return tuple(part.entry for part in self.parts)

    @property
    def local_paths(self) -> set[str]:
        """Where the parts lie, of those that are no objects of a store."""
        local = (part for part in self.parts if part.storage.is_local)
        return {part.storage.uri(part.entry.path) for part in local}

    def read(self, start: int, stop: int, columns: Sequence[str] = ()) -> RowBatch:
        """Rows of a range over all parts."""
        blocks, first = list[RowBatch](), 0
        for part in self.parts:
            rows = part.entry.rows or 0
            begin, end = max(start - first, 0), min(stop - first, rows)
            if begin < end:
                try:
                    blocks.append(part.read(begin, end, self.first_id + first, columns))
                except FileNotFoundError:
                    raise source_changed_error(part.storage.name(part.entry.path)) from None
            first += rows
        return concat_batches(blocks)

    def slice(self, start: int, stop: int) -> tuple[Rows, int]:
        """The parts that hold a range, and where it begins in them."""
        kept, first, before = list[Reader](), 0, 0
        for part in self.parts:
            rows = part.entry.rows or 0
            if first + rows <= start:
                before += rows
            elif first < stop:
                kept.append(part)
            first += rows
        return Rows(tuple(kept), self.first_id + before), start - before

    def require_unchanged(self) -> None:
        """DataError where a part is no longer what was opened."""
        for part in self.parts:
            require_unchanged(part)


def concat_batches(blocks: Sequence[RowBatch]) -> RowBatch:
    """The rows of all blocks, in their order."""
    if len(blocks) == 1:
        return blocks[0]
    labels = [block.labels for block in blocks if block.labels is not None]
    try:
        columns = pa.concat_tables(
            [block.columns for block in blocks], promote_options="permissive"
        )
    except pa.ArrowException as error:
        raise DataError(f"Columns of the input differ from file to file: {error}.") from None
    return RowBatch(
        np.concatenate([block.ids for block in blocks]),
        np.concatenate([block.images for block in blocks]),
        np.concatenate(labels) if labels else None,
        columns,
        tuple(bad for block in blocks for bad in block.bad),
    )


def require_unchanged(part: Reader) -> None:
    """DataError where a part is no longer what was opened."""
    if part.current_fingerprint() != part.fingerprint:
        raise source_changed_error(part.storage.name(part.entry.path))


def source_changed_error(name: str) -> DataError:
    """The error that what has this name is no longer what was opened."""
    return DataError(f"{name} was changed while it was read. Run again when it is finished.")


def require_one_shape(parts: Sequence[Reader]) -> None:
    """DataError where images of the parts are of several sizes."""
    for part in parts:
        if part.shape != parts[0].shape:
            sizes = [f"{height} x {width}" for height, width in (parts[0].shape, part.shape)]
            raise DataError(
                f"{parts[0].storage.name(parts[0].entry.path)} has images of {sizes[0]}, but "
                f"{part.storage.name(part.entry.path)} of {sizes[1]}. All must be of one size."
            )
