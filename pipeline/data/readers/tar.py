"""A reader of tar shards of image files, as WebDataset has them: `0001.png` beside `0001.cls`."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, cast

import numpy as np
import pyarrow as pa

from pipeline.arrays import Int64Array
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.console import say
from pipeline.contract import AS_IS, Preparation
from pipeline.data.readers.image_folder import SUFFIXES, decode_files, first_shape, read_image
from pipeline.data.readers.labels import (
    Label,
    LabelCounts,
    add_counts,
    count_labels,
    index_labels,
)
from pipeline.data.readers.rows import Ranges, RowBatch, as_data_error, require_unchanged
from pipeline.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

LABEL_SUFFIXES = (".cls", ".label", ".txt")
"""If an image has several such files, the first of these holds its label."""

MAX_LABEL_BYTES = 1000

MAX_HEADER_BYTES = 1 << 20
"""Bytes of the names and attributes of one member, whose size the file itself says."""

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class TarReader:
    """A reader of one file.

    `places` are the positions and sizes of its image files in bytes, int64 (N, 2); `values` are
    their labels.
    """

    storage: Storage
    entry: FileEntry
    shape: tuple[int, int]
    fingerprint: Fingerprint
    places: Int64Array = field(compare=False)
    values: tuple[str, ...] | None = field(compare=False)
    preparation: Preparation = AS_IS
    classes: tuple[Label, ...] = ()

    max_runs = 64

    @property
    def bytes_per_row(self) -> int:
        return self.shape[0] * self.shape[1]

    def is_unchanged(self, ranges: Ranges) -> bool:
        return self.storage.fingerprint(self.entry.path) == self.fingerprint

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        if columns:
            name = self.storage.display(self.entry.path)
            raise DataError(f"{name} has no column {columns[0]!r}: it holds only images.")
        with self.storage.open(self.entry.path) as file:
            require_unchanged(self)
            contents = (_read(file, *place) for place in self.places[begin:end].tolist())
            images, reasons = decode_files(contents, end - begin, self.preparation, self.shape)
        ids = np.arange(first_id + begin, first_id + end, dtype=np.int64)
        labels = None
        if self.values is not None and self.classes:
            labels, unknown = index_labels(self.values[begin:end], self.classes)
            reasons |= unknown
        return RowBatch(ids, images, labels).drop(reasons)

    @property
    def labelled(self) -> bool:
        return self.values is not None

    @property
    def class_names(self) -> None:
        return None

    def with_classes(self, classes: tuple[Label, ...]) -> TarReader:
        return replace(self, classes=classes)

    def count_labels(self) -> LabelCounts:
        """Return how often each label occurs."""
        counts = Counter[Label]()
        add_counts(counts, count_labels(self.values or ()), self.storage.display(self.entry.path))
        return counts


def open_tar(
    storage: Storage,
    path: str,
    *,
    preparation: Preparation = AS_IS,
    size: tuple[int, int] | None = None,
) -> TarReader:
    """Read a file once, and return its reader.

    Members that are neither image files nor labels are skipped, and said. Raise DataError, which
    names the file, if it is not a tar of image files, if a name is repeated, or if only some images
    have labels.
    """
    name, fingerprint = storage.display(path), storage.fingerprint(path)
    with storage.open(path) as file:
        sha256 = storage.sha256(path)
        with as_data_error(name, "a tar file without compression"):
            images, labels = _index(file, name)
        if not images:
            raise DataError(f"{name} holds no image files ({', '.join(SUFFIXES)}).")
        if labels and (missing := [key for key in images if key not in labels]):
            raise DataError(f"{name}: the image {missing[0][:99]!r} has no label beside it.")
        contents = ((name, _read(file, *place)) for place in images.values())
        shape = size or first_shape(contents, preparation)
        total = file.size()
    return TarReader(
        storage,
        FileEntry(path=path, bytes=total, sha256=sha256, rows=len(images)),
        shape,
        fingerprint,
        np.array(list(images.values()), np.int64),
        tuple(labels[key] for key in images) if labels else None,
        preparation,
    )


def _index(file: pa.NativeFile, name: str) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Return the places of the image files and the labels, by the name up to its first dot."""
    images = dict[str, tuple[int, int]]()
    by_suffix = {suffix: dict[str, str]() for suffix in LABEL_SUFFIXES}
    texts = dict[str, str]()
    skipped = Counter[str]()
    for member in _members(file):
        folder, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        key, suffix = f"{folder}/{stem}", f".{suffix.rpartition('.')[2].lower()}"
        if member.isdir():
            continue
        if not member.isreg() or member.issparse() or base.startswith((".", "_")):
            skipped["hidden, links, sparse or no files"] += 1
        elif suffix in SUFFIXES:
            if key in images:
                raise DataError(f"{name} has several images {key[:99]!r}. Leave one of each name.")
            images[key] = member.offset_data, member.size
        elif suffix in LABEL_SUFFIXES and member.size <= MAX_LABEL_BYTES:
            text = _read(file, member.offset_data, member.size).decode().strip()
            if key in by_suffix[suffix]:
                raise DataError(f"{name} has several labels of {key[:99]!r}. Leave one.")
            # One object for each text: there are far fewer than members.
            by_suffix[suffix][key] = texts.setdefault(text, text)
        else:
            skipped["neither images nor labels"] += 1
    labels = {
        key: label
        for suffix in reversed(LABEL_SUFFIXES)
        for key, label in by_suffix[suffix].items()
    }
    if alone := len(labels.keys() - images.keys()):
        skipped["labels without an image"] = alone
    for reason, count in skipped.items():
        say(f"{name}: {count:,} members are skipped, as they are {reason}")
    return images, labels


def _members(file: pa.NativeFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members up to the end. Raise an error if it is not followed by zeros alone."""
    file.seek(0)
    position = 0
    with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as archive:
        while member := archive.next():
            # A negative size would lead back to an earlier member.
            if member.size < 0 or archive.offset <= position:
                raise ValueError("a member has a negative size")
            position = archive.offset
            yield member
            # tarfile would keep them all.
            archive.members.clear()  # type: ignore[attr-defined]
    # tarfile ends at any header that it cannot read, and at the end of the first of joined files.
    if file.size() < position + tarfile.BLOCKSIZE:
        raise ValueError("its end is missing")
    file.seek(position)
    while rest := file.read(CHUNK_BYTES):
        if rest.strip(b"\0"):
            raise ValueError(f"it continues after the member that ends at byte {position:,}")


class _Headers:
    """A file of which tarfile reads the headers, with bounded memory."""

    def __init__(self, file: pa.NativeFile) -> None:
        self.tell, self.seek, self._file = file.tell, file.seek, file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size:,} bytes")
        return bytes(self._file.read(size))


def _read(file: pa.NativeFile, offset: int, size: int) -> bytes:
    file.seek(offset)
    return read_image(file, size)
