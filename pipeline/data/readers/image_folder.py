"""Folders of pictures as rows: PNG and JPEG, of all folders below, by path."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.arrays import UInt8Array
from pipeline.artifacts.commit import file_entry
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage, parallel_map
from pipeline.data.readers.rows import RowBatch
from pipeline.errors import DataError
from pipeline.images.decode import decode_grayscale, is_png_or_jpeg

IMAGES_PER_READER = 1000

SUFFIXES = (".png", ".jpg", ".jpeg")

PATH_COLUMN = "path"
"""The column that pictures have: where each lies in its folder."""


@dataclass(frozen=True)
class ImageFolderReader:
    """The pictures at `paths`; their labels, where folders are classes."""

    storage: Storage
    entry: FileEntry
    shape: tuple[int, int]
    fingerprint: Fingerprint
    paths: tuple[str, ...]
    labels: tuple[int, ...] | None = None

    def current_fingerprint(self) -> Fingerprint:
        return self.storage.fingerprint(*self.paths)

    def read(self, begin: int, end: int, first: int, columns: Sequence[str]) -> RowBatch:
        if other := [name for name in columns if name != PATH_COLUMN]:
            raise DataError(f"Pictures have no column {other[0]!r}, but {PATH_COLUMN!r} alone.")
        paths = self.paths[begin:end]
        images, reasons = np.zeros((len(paths), *self.shape), np.uint8), dict[int, str]()
        for at, (path, data) in enumerate(
            zip(paths, parallel_map(self.storage.read, paths), strict=True)
        ):
            try:
                images[at] = self._pixels(data)
            except DataError as error:
                reasons[at] = f"{path}: {error}"
        ids = np.arange(first + begin, first + end, dtype=np.int64)
        labels = None if self.labels is None else np.array(self.labels[begin:end], np.int64)
        named = pa.table({PATH_COLUMN: pa.array(paths, pa.string())} if columns else {})
        return RowBatch(ids, images, labels, named).drop(reasons)

    def _pixels(self, data: bytes) -> UInt8Array:
        if not is_png_or_jpeg(data):
            raise DataError("It is no PNG and no JPEG.")
        pixels = decode_grayscale(data)
        if pixels.shape != self.shape:
            raise DataError(
                f"It is {pixels.shape[0]} x {pixels.shape[1]}, and the first picture "
                f"{self.shape[0]} x {self.shape[1]}."
            )
        return pixels


def image_files(storage: Storage, folder: str) -> list[str]:
    """The pictures in a folder and in those within, by their names."""
    return [path for path in storage.files(folder) if path.lower().endswith(SUFFIXES)]


def open_image_folder(
    storage: Storage, folder: str, paths: Sequence[str], classes: Sequence[str] | None = None
) -> list[ImageFolderReader]:
    """Pictures of a folder, one or more, each in a folder of its class where there are classes.

    DataError where the first is none to read: it says the size of all.
    """
    try:
        height, width = decode_grayscale(storage.read(paths[0])).shape
    except DataError as error:
        raise DataError(f"{storage.display(paths[0])}: {error}") from None
    labels = {name: label for label, name in enumerate(classes or ())}
    parts = []
    # A part goes to each task that needs some of it, so it must not name all of them.
    for start in range(0, len(paths), IMAGES_PER_READER):
        some = tuple(paths[start : start + IMAGES_PER_READER])
        fingerprint = storage.fingerprint(*some)
        found = parallel_map(lambda path: file_entry(path, storage.read(path)), some)
        entry = FileEntry(
            path=folder,
            bytes=sum(picture.bytes for picture in found),
            sha256=digest_of(found),
            rows=len(some),
        )
        of = tuple(labels[path.rsplit("/", 2)[-2]] for path in some) if classes else None
        parts.append(ImageFolderReader(storage, entry, (height, width), fingerprint, some, of))
    return parts


def digest_of(files: Iterable[FileEntry]) -> str:
    """The sha256 of the paths and digests of several files."""
    lines = "".join(f"{file.path}\0{file.sha256}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
