"""A reader of folders of image files (PNG and JPEG): a row per file, in order of paths."""

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
"""A reader holds the paths of its files and is sent to each task that needs one of them. A task
that needs few rows should not be sent the paths of a whole source."""

SUFFIXES = (".png", ".jpg", ".jpeg")

PATH_COLUMN = "path"
"""The only additional column: the path of each image file in its folder."""


@dataclass(frozen=True)
class ImageFolderReader:
    """Some image files of a folder, and their labels if the folders are classes."""

    storage: Storage
    entry: FileEntry
    shape: tuple[int, int]
    fingerprint: Fingerprint
    paths: tuple[str, ...]
    labels: tuple[int, ...] | None = None

    def current_fingerprint(self) -> Fingerprint:
        return self.storage.fingerprint(*self.paths)

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        if other := [name for name in columns if name != PATH_COLUMN]:
            raise DataError(
                f"Image files have no column {other[0]!r}, only {PATH_COLUMN!r}. Leave it out."
            )
        paths = self.paths[begin:end]
        images = np.zeros((len(paths), *self.shape), np.uint8)
        reasons = dict[int, str]()
        contents = parallel_map(self.storage.read, paths)
        for row, (path, content) in enumerate(zip(paths, contents, strict=True)):
            try:
                images[row] = self._decode(content)
            except DataError as error:
                reasons[row] = f"{path}: {error}"
        ids = np.arange(first_id + begin, first_id + end, dtype=np.int64)
        labels = None if self.labels is None else np.array(self.labels[begin:end], np.int64)
        extra = pa.table({PATH_COLUMN: pa.array(paths, pa.string())} if columns else {})
        return RowBatch(ids, images, labels, extra).drop(reasons)

    def _decode(self, content: bytes) -> UInt8Array:
        if not is_png_or_jpeg(content):
            raise DataError("It is neither a PNG nor a JPEG.")
        pixels = decode_grayscale(content)
        if pixels.shape != self.shape:
            raise DataError(
                f"It is {pixels.shape[0]} x {pixels.shape[1]}, but the first image is "
                f"{self.shape[0]} x {self.shape[1]}."
            )
        return pixels


def image_files(storage: Storage, folder: str) -> list[str]:
    """Return the paths of the image files in a folder and its subfolders, by their suffixes."""
    return [path for path in storage.files(folder) if path.lower().endswith(SUFFIXES)]


def open_image_folder(
    storage: Storage, folder: str, paths: Sequence[str], classes: Sequence[str] | None = None
) -> list[ImageFolderReader]:
    """Return the readers of these image files of a folder, `IMAGES_PER_READER` files each.

    If there are `classes`, each file lies in a folder with the name of its class. Raise DataError
    if the first file, which decides the size of all, cannot be decoded.
    """
    try:
        height, width = decode_grayscale(storage.read(paths[0])).shape
    except DataError as error:
        raise DataError(f"{storage.display(paths[0])}: {error}") from None
    labels = {name: label for label, name in enumerate(classes or ())}
    readers = []
    for start in range(0, len(paths), IMAGES_PER_READER):
        own_paths = tuple(paths[start : start + IMAGES_PER_READER])
        fingerprint = storage.fingerprint(*own_paths)
        files = parallel_map(lambda path: file_entry(path, storage.read(path)), own_paths)
        entry = FileEntry(
            path=folder,
            bytes=sum(file.bytes for file in files),
            sha256=digest_of(files),
            rows=len(files),
        )
        own_labels = tuple(labels[class_of(path)] for path in own_paths) if classes else None
        readers.append(
            ImageFolderReader(
                storage, entry, (height, width), fingerprint, own_paths, labels=own_labels
            )
        )
    return readers


def class_of(path: str) -> str:
    """Return the name of the folder that an image file lies in."""
    return path.rsplit("/", 2)[-2]


def digest_of(files: Iterable[FileEntry]) -> str:
    """Return the sha256 of the paths and digests of several files."""
    lines = "".join(f"{file.path}\0{file.sha256}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
