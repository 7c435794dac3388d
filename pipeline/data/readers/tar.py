"""A reader of tar shards of image files, as WebDataset has them: `0001.png` beside `0001.cls`."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.contract import AS_IS, Preparation
from pipeline.data.readers.image_folder import SUFFIXES, decode_file, first_shape
from pipeline.data.readers.labels import Label, LabelCounts, Labels, count_labels, index_labels
from pipeline.data.readers.rows import RowBatch, require_unchanged
from pipeline.errors import DataError

LABEL_SUFFIXES = (".cls", ".label", ".txt")

MAX_LABEL_BYTES = 1000


@dataclass(frozen=True)
class TarReader:
    """A reader of one file: the positions of its image files in it, and their labels."""

    storage: Storage
    entry: FileEntry
    shape: tuple[int, int]
    fingerprint: Fingerprint
    members: tuple[tuple[int, int], ...]
    values: tuple[Label, ...] | None
    preparation: Preparation = AS_IS
    classes: tuple[Label, ...] = ()

    max_runs = 64

    def current_fingerprint(self) -> Fingerprint:
        return self.storage.fingerprint(self.entry.path)

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        name = self.storage.display(self.entry.path)
        if columns:
            raise DataError(f"{name} has no column {columns[0]!r}: it holds only images.")
        images = np.zeros((end - begin, *self.shape), np.uint8)
        reasons = dict[int, str]()
        with self.storage.open(self.entry.path) as file:
            require_unchanged(self)
            for row, (offset, size) in enumerate(self.members[begin:end]):
                try:
                    content = _read(file, offset, size)
                    images[row] = decode_file(content, self.preparation, self.shape)
                except DataError as error:
                    reasons[row] = str(error)
        ids = np.arange(first_id + begin, first_id + end, dtype=np.int64)
        labels = None
        if self.values is not None and self.classes:
            labels, unknown = index_labels(self._labels(begin, end), self.classes)
            reasons |= unknown
        return RowBatch(ids, images, labels).drop(reasons)

    def _labels(self, begin: int, end: int) -> Labels:
        assert self.values is not None
        values = self.values[begin:end]
        if isinstance(self.classes[0], int):
            return np.array([v if isinstance(v, int) else -1 for v in values], np.int64)
        return [str(value) for value in values]

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
        return count_labels(self.values or ())


def open_tar(
    storage: Storage,
    path: str,
    *,
    preparation: Preparation = AS_IS,
    size: tuple[int, int] | None = None,
) -> TarReader:
    """Read a file once, and return its reader. Raise DataError if it is not a tar of images."""
    name, fingerprint = storage.display(path), storage.fingerprint(path)
    images = dict[str, tuple[int, int]]()
    labels = dict[str, Label]()
    with storage.open(path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    _index(archive, member, images, labels)
        except tarfile.TarError as error:
            raise DataError(
                f"{name} is not a tar file without compression, or is damaged ({error}). Unpack "
                "it if it is compressed."
            ) from None
        if not images:
            raise DataError(f"{name} holds no image files ({', '.join(SUFFIXES)}).")
        if labels and (missing := [key for key in images if key not in labels]):
            raise DataError(f"{name}: the image {missing[0]!r} has no label beside it.")
        contents = ((name, _read(file, *place)) for place in images.values())
        shape = size or first_shape(contents, preparation)
        total = file.size()
    return TarReader(
        storage,
        FileEntry(path=path, bytes=total, sha256=sha256, rows=len(images)),
        shape,
        fingerprint,
        tuple(images.values()),
        tuple(labels[key] for key in images) if labels else None,
        preparation,
    )


def _index(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    images: dict[str, tuple[int, int]],
    labels: dict[str, Label],
) -> None:
    """Add the position of an image file, or the label of one, by the name up to the first dot."""
    folder, _, file = member.name.rpartition("/")
    if not member.isreg() or file.startswith((".", "_")):
        return
    stem, _, suffix = file.partition(".")
    key = f"{folder}/{stem}"
    if suffix.lower().endswith(tuple(suffix[1:] for suffix in SUFFIXES)):
        images[key] = member.offset_data, member.size
    elif f".{suffix.lower()}" in LABEL_SUFFIXES and member.size <= MAX_LABEL_BYTES:
        content = archive.extractfile(member)
        assert content
        text = content.read().decode("utf-8", "replace").strip()
        labels[key] = int(text) if text.isascii() and text.isdigit() else text


def _read(file: pa.NativeFile, offset: int, size: int) -> bytes:
    file.seek(offset)
    return bytes(file.read(size))
