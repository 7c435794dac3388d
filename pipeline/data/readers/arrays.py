"""A reader of arrays of images, in IDX or NumPy files, with their labels in a second array."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from typing import Any, BinaryIO, cast

import numpy as np

from pipeline.arrays import Int64Array
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.contract import AS_IS, Preparation
from pipeline.data.readers import array_format
from pipeline.data.readers.array_format import ArrayInfo
from pipeline.data.readers.labels import Label, LabelCounts, add_counts, count_labels, index_labels
from pipeline.data.readers.pixels import image_axes, prepare_rows, to_images
from pipeline.data.readers.rows import Ranges, RowBatch, source_changed_error
from pipeline.errors import DataError

MAX_OPEN_FILES = 2
"""An image file and its label file."""

LABELS_AT_A_TIME = 1 << 20

_open_files: dict[tuple[object, ...], tuple[ExitStack, BinaryIO]] = {}
"""The files that stay open in this process, least recently read first."""


@atexit.register
def _close_files() -> None:
    while _open_files:
        _open_files.popitem()[1][0].close()


@dataclass(frozen=True)
class ArrayFile:
    """A verified array in a file, or in the member of a `.npz`."""

    storage: Storage
    entry: FileEntry
    info: ArrayInfo
    fingerprint: Fingerprint
    member: str = ""

    @cached_property
    def name(self) -> str:
        """The name for messages."""
        name = self.storage.display(self.entry.path)
        return f"{name}[{self.member}]" if self.member else name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @cached_property
    def _key(self) -> tuple[object, ...]:
        return self.storage, self.entry.path, self.member, self.fingerprint

    def read(self, ranges: Sequence[tuple[int, int]]) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
        """Return the rows of these ranges, in order. The file stays open unless reading fails."""
        key = self._key
        # Not `in` first: another thread may close the file in between.
        opened: tuple[ExitStack, BinaryIO] | None = _open_files.pop(key, None)
        file, content = opened or self._open()
        with file:
            rows = array_format.read_rows(content, self.info, ranges, name=self.name)
            # No error: take the file out of the `with`, so that it is not closed.
            other = _open_files.pop(key, None)
            _open_files[key] = file.pop_all(), content
            if other:
                # Another thread opened it too.
                other[0].close()
        for least_recent in list(_open_files)[:-MAX_OPEN_FILES]:
            # Another thread may have taken it.
            if closing := _open_files.pop(least_recent, None):
                closing[0].close()
        return rows

    def _open(self) -> tuple[ExitStack, BinaryIO]:
        """Open the file; unpack a compressed one, as ranges of it are read in any order."""
        with ExitStack() as stack:
            file = cast(BinaryIO, stack.enter_context(self.storage.open(self.entry.path)))
            # Compare after opening: an open handle keeps the old content even if the path is
            # replaced.
            if self.storage.fingerprint(self.entry.path) != self.fingerprint:
                raise source_changed_error(self.name)
            try:
                content = array_format.content(file, self.member)
                if content is not file:
                    unpacked = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile()))
                    shutil.copyfileobj(content, unpacked, array_format.CHUNK_BYTES)
                    content = unpacked
            except array_format.BROKEN:
                raise source_changed_error(self.name) from None
            return stack.pop_all(), content


@dataclass(frozen=True)
class ArrayReader:
    """Images, and their labels if any.

    `axes` are the height, width and channels of an image in the file. `transposed`: the file holds
    each image column by column. `classes` are the labels in the file, in the order of classes.
    """

    images: ArrayFile
    axes: tuple[int, int, int]
    shape: tuple[int, int]
    preparation: Preparation = AS_IS
    labels: ArrayFile | None = None
    transposed: bool = False
    classes: tuple[Label, ...] = ()

    max_runs = 64

    @property
    def bytes_per_row(self) -> int:
        # The values, and their conversion.
        return 4 * prod(self.images.shape[1:]) * np.dtype(self.images.info.dtype).itemsize

    @property
    def storage(self) -> Storage:
        return self.images.storage

    @property
    def entry(self) -> FileEntry:
        return self.images.entry

    def is_unchanged(self, ranges: Ranges) -> bool:
        files = [self.images] + ([self.labels] if self.labels else [])
        return all(file.storage.fingerprint(file.entry.path) == file.fingerprint for file in files)

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        return self.read_ranges([(begin, end)], first_id, columns)

    def read_ranges(self, ranges: Ranges, first_id: int, columns: Sequence[str]) -> RowBatch:
        if columns:
            raise DataError(
                f"{self.entry.path} has no column {columns[0]!r}: it holds only images."
            )
        reasons = dict[int, str]()
        images = to_images(self.images.read(ranges), self.axes, self.preparation, reasons)
        if self.transposed:
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        images = prepare_rows(images, self.preparation, self.shape, reasons)
        ids = np.concatenate([np.arange(begin, end, dtype=np.int64) for begin, end in ranges])
        labels = None
        if self.labels and self.classes:
            labels, unknown = index_labels(_class_numbers(self.labels, ranges), self.classes)
            reasons |= unknown
        return RowBatch(ids + first_id, images, labels).drop(reasons)

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    @property
    def class_names(self) -> None:
        return None

    def with_classes(self, classes: tuple[Label, ...]) -> ArrayReader:
        return replace(self, classes=classes)

    def count_labels(self) -> LabelCounts:
        """Return how often each label occurs."""
        counts = Counter[Label]()
        assert self.labels
        for begin in range(0, self.labels.shape[0], LABELS_AT_A_TIME):
            end = min(begin + LABELS_AT_A_TIME, self.labels.shape[0])
            numbers = _class_numbers(self.labels, [(begin, end)])
            add_counts(counts, count_labels(numbers), self.labels.name)
        return counts


def open_arrays(
    images: ArrayFile,
    labels: ArrayFile | None,
    *,
    preparation: Preparation = AS_IS,
    size: tuple[int, int] | None = None,
    hint: tuple[int, int] | None = None,
    transposed: bool = False,
) -> ArrayReader:
    """Return the reader of verified arrays.

    `size` is that of the dataset, if its images are fitted; `hint` that of flat images, if
    it has as many pixels. Raise DataError if the arrays are not images, or do not belong together.
    """
    axes = image_axes(images.shape[1:], images.name, hint=hint or size)
    _check_values(images)
    if labels:
        _check_labels(images, labels)
    shape = (axes[1], axes[0]) if transposed else axes[:2]
    return ArrayReader(images, axes, size or shape, preparation, labels, transposed)


def open_array_file(storage: Storage, path: str, member: str = "") -> ArrayFile:
    """Read an array once from beginning to end, and return it as verified.

    Raise FileNotFoundError if the file does not exist, DataError if it is not an array.
    """
    fingerprint = storage.fingerprint(path)
    with storage.open(path) as file:
        size = file.size()
        shown = storage.display(path)
        name = f"{shown}[{member}]" if member else shown
        info = array_format.verify(
            cast(BinaryIO, file),
            name=name,
            compressed_bytes=size,
            member=member,
            digest=partial(storage.sha256, path),
        )
    entry = FileEntry(path=path, bytes=size, sha256=info.sha256, rows=info.shape[0])
    return ArrayFile(storage, entry, info, fingerprint, member)


def _check_values(images: ArrayFile) -> None:
    """Raise DataError if pixels are shares from 0 to 1, which would all be nearly black."""
    if np.dtype(images.info.dtype).kind == "f":
        first = images.read([(0, min(100, images.shape[0]))])
        if 0 < float(first.max()) <= 1:
            raise DataError(
                f"{images.name} has pixels from 0 to 1, but images are integers from 0 to 255. "
                "Save (255 * images).astype(numpy.uint8)."
            )


def _check_labels(images: ArrayFile, labels: ArrayFile) -> None:
    if images.shape[0] != labels.shape[0]:
        raise DataError(
            f"{images.name} holds {images.shape[0]} images, but {labels.name} "
            f"{labels.shape[0]} labels. Give files that belong together."
        )
    numbers = np.dtype(labels.info.dtype).kind in "ui"
    # QMNIST has eight numbers of each image in IDX, the first of which is its class.
    columns = prod(labels.shape[1:])
    is_qmnist = columns == 8 and labels.info.dtype == ">i4"
    if not numbers or len(labels.shape) > 2 or not (columns == 1 or is_qmnist):
        raise DataError(
            f"{labels.name} is an array of {labels.info.dtype} of shape {labels.shape}, but labels "
            "are one integer for each image."
        )


def _class_numbers(labels: ArrayFile, ranges: Sequence[tuple[int, int]]) -> Int64Array:
    values = labels.read(ranges)
    return values.reshape(len(values), -1)[:, 0].astype(np.int64)
