"""A reader of IDX files: images, with labels in a second file."""

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

MAX_OPEN_FILES = 2
"""An image file and its label file."""

_open_files: dict[IdxFile, tuple[ExitStack, BinaryIO]] = {}
"""The files that stay open in this process, least recently read first."""


@dataclass(frozen=True)
class IdxFile:
    """A verified IDX file. The sha256 of its entry is that of the content without gzip."""

    storage: Storage
    entry: FileEntry
    shape: tuple[int, ...]
    fingerprint: Fingerprint

    def read(self, begin: int, end: int) -> arrays.UInt8Array:
        """Return rows begin..end.

        The file stays open unless reading fails. The next range of a gzipped file then continues
        from here; otherwise each range would unpack the file from its beginning.
        """
        file, content = _open_files.pop(self) if self in _open_files else self._open()
        name = self.storage.display(self.entry.path)
        with file:
            rows = idx_format.read_rows(content, name=name, shape=self.shape, start=begin, stop=end)
            # No error: take the file out of the `with`, so that it is not closed.
            _open_files[self] = file.pop_all(), content
        for least_recent in list(_open_files)[:-MAX_OPEN_FILES]:
            _open_files.pop(least_recent)
        return rows

    def _open(self) -> tuple[ExitStack, BinaryIO]:
        with ExitStack() as stack:
            file = stack.enter_context(self.storage.open(self.entry.path))
            # Compare after opening: an open handle keeps the old content even if the path is
            # replaced.
            if self.storage.fingerprint(self.entry.path) != self.fingerprint:
                raise source_changed_error(self.storage.display(self.entry.path))
            content = idx_format.content(cast(BinaryIO, file))
            return stack.pop_all(), content


@dataclass(frozen=True)
class IdxReader:
    """Images, and their labels if any.

    `transposed`: the file holds each image column by column. `first_label`: the lowest label in the
    file, which becomes 0.
    """

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

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        if columns:
            raise DataError(
                f"{self.entry.path} has no column {columns[0]!r}: IDX files have only images."
            )
        images = self.images.read(begin, end)
        if self.transposed:
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        ids = np.arange(first_id + begin, first_id + end, dtype=np.int64)
        if self.labels is None:
            return RowBatch(ids, images)
        labels = self.labels.read(begin, end).astype(np.int64) - self.first_label
        return RowBatch(ids, images, labels)


def open_idx(storage: Storage, path: str, *, rank: int) -> IdxFile:
    """Read an IDX file once from beginning to end, and return it as verified.

    Raise FileNotFoundError if it does not exist, DataError if it is not an IDX file of this rank,
    StorageError if it cannot be read.
    """
    fingerprint = storage.fingerprint(path)
    with storage.open(path) as file:
        size = file.size()
        idx = idx_format.verify(cast(BinaryIO, file), name=path, rank=rank, compressed_bytes=size)
    entry = FileEntry(path=path, bytes=size, sha256=idx.sha256, rows=idx.shape[0])
    return IdxFile(storage, entry, idx.shape, fingerprint)
