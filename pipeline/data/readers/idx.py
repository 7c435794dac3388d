"""IDX files as rows: images, and their labels in a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np

from pipeline import arrays
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.data.readers import idx_format
from pipeline.data.readers.rows import RowBatch, source_changed_error
from pipeline.errors import DataError

MAX_OPEN = 2
"""Files that stay open: images, and their labels."""

_open_files: dict[IdxFile, tuple[ExitStack, BinaryIO]] = {}


@dataclass(frozen=True)
class IdxFile:
    """One IDX file that was found whole; its entry's digest is that of the content without gzip."""

    storage: Storage
    entry: FileEntry
    shape: tuple[int, ...]
    fingerprint: Fingerprint

    def read(self, begin: int, end: int) -> arrays.UInt8Array:
        """A range of the rows. The file stays open, unless reading fails: where it is gzipped, the
        next range goes on from there, which else would unpack it from its beginning."""
        file, content = _open_files.pop(self) if self in _open_files else self._opened()
        name = self.storage.name(self.entry.path)
        with file:
            rows = idx_format.read_rows(content, name=name, shape=self.shape, start=begin, stop=end)
            _open_files[self] = file.pop_all(), content
        for other in list(_open_files)[:-MAX_OPEN]:
            _open_files.pop(other)
        return rows

    def _opened(self) -> tuple[ExitStack, BinaryIO]:
        with ExitStack() as stack:
            file = stack.enter_context(self.storage.open(self.entry.path))
            # What is open stays what it is, whatever comes to stand under its name.
            if self.storage.fingerprint(self.entry.path) != self.fingerprint:
                raise source_changed_error(self.storage.name(self.entry.path))
            content = idx_format.content(cast(BinaryIO, file))
            return stack.pop_all(), content


@dataclass(frozen=True)
class IdxReader:
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
    def fingerprint(self) -> Fingerprint:
        return self.images.fingerprint + (self.labels.fingerprint if self.labels else ())

    def current_fingerprint(self) -> Fingerprint:
        files = [self.images] + ([self.labels] if self.labels else [])
        return self.storage.fingerprint(*(file.entry.path for file in files))

    def read(self, begin: int, end: int, first: int, columns: Sequence[str]) -> RowBatch:
        if columns:
            raise DataError(
                f"{self.entry.path} has no column {columns[0]!r}: IDX has images alone."
            )
        images = self.images.read(begin, end)
        if self.transposed:
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        ids = np.arange(first + begin, first + end, dtype=np.int64)
        if self.labels is None:
            return RowBatch(ids, images)
        return RowBatch(
            ids, images, self.labels.read(begin, end).astype(np.int64) - self.first_label
        )


def open_idx(storage: Storage, path: str, *, rank: int) -> IdxFile:
    """An IDX file, read through once; FileNotFoundError where there is none, DataError where it is
    not one of this rank, StorageError where it cannot be read."""
    fingerprint = storage.fingerprint(path)
    with storage.open(path) as file:
        size = file.size()
        found = idx_format.verify(cast(BinaryIO, file), name=path, rank=rank, compressed_bytes=size)
    entry = FileEntry(path=path, bytes=size, sha256=found.sha256, rows=found.shape[0])
    return IdxFile(storage, entry, found.shape, fingerprint)
