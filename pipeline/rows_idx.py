"""IDX files as rows: images, and their labels in a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np

from pipeline import idx
from pipeline.contract import DataError
from pipeline.manifest import FileEntry
from pipeline.rows import Block, changed
from pipeline.storage import Stamp, Storage

MAX_OPEN = 2
"""Files that stay open: images, and their labels."""

_open: dict[IdxFile, tuple[ExitStack, BinaryIO]] = {}


@dataclass(frozen=True)
class IdxFile:
    """One IDX file that was found whole; its entry's digest is that of the content without gzip."""

    storage: Storage
    entry: FileEntry
    shape: tuple[int, ...]
    stamp: Stamp

    def read(self, begin: int, end: int) -> idx.Array:
        """A range of the rows. The file stays open, unless reading fails: where it is gzipped, the
        next range goes on from there, which else would unpack it from its beginning."""
        file, content = _open.pop(self) if self in _open else self._opened()
        name = self.storage.name(self.entry.path)
        with file:
            rows = idx.read_rows(content, name=name, shape=self.shape, start=begin, stop=end)
            _open[self] = file.pop_all(), content
        for other in list(_open)[:-MAX_OPEN]:
            _open.pop(other)
        return rows

    def _opened(self) -> tuple[ExitStack, BinaryIO]:
        with ExitStack() as stack:
            file = stack.enter_context(self.storage.open(self.entry.path))
            # What is open stays what it is, whatever comes to stand under its name.
            if self.storage.stamp(self.entry.path) != self.stamp:
                raise changed(self.storage.name(self.entry.path))
            content = idx.content(cast(BinaryIO, file))
            return stack.pop_all(), content


@dataclass(frozen=True)
class IdxRows:
    """Images, and labels counted from `first_label`; `transposed` where columns come first."""

    images: IdxFile
    labels: IdxFile | None = None
    transposed: bool = False
    first_label: int = 0

    @property
    def storage(self) -> Storage:
        return self.images.storage

    @property
    def entry(self) -> FileEntry:
        return self.images.entry

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.images.shape[1:]
        return (width, height) if self.transposed else (height, width)

    @property
    def stamp(self) -> Stamp:
        return self.images.stamp + (self.labels.stamp if self.labels else ())

    def stamp_now(self) -> Stamp:
        files = [self.images] + ([self.labels] if self.labels else [])
        return self.storage.stamp(*(file.entry.path for file in files))

    def read(self, begin: int, end: int, first: int, columns: Sequence[str]) -> Block:
        if columns:
            raise DataError(
                f"{self.entry.path} has no column {columns[0]!r}: IDX has images alone."
            )
        images = self.images.read(begin, end)
        if self.transposed:
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        ids = np.arange(first + begin, first + end, dtype=np.int64)
        if self.labels is None:
            return Block(ids, images)
        return Block(ids, images, self.labels.read(begin, end).astype(np.int64) - self.first_label)


def open_idx(storage: Storage, path: str, *, rank: int) -> IdxFile:
    """An IDX file, read through once; FileNotFoundError where there is none, DataError where it is
    not one of this rank, StorageError where it cannot be read."""
    stamp = storage.stamp(path)
    with storage.open(path) as file:
        size = file.size()
        found = idx.inspect(cast(BinaryIO, file), name=path, rank=rank, compressed_bytes=size)
    entry = FileEntry(path=path, bytes=size, sha256=found.sha256, rows=found.shape[0])
    return IdxFile(storage, entry, found.shape, stamp)
