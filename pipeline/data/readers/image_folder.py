"""A reader of folders of image files (PNG and JPEG): a row per file, in order of paths."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.arrays import UInt8Array
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.artifacts.threads import map_waiting
from pipeline.contract import AS_IS, Preparation
from pipeline.data.readers.rows import Ranges, RowBatch
from pipeline.errors import DataError
from pipeline.images.decode import is_png_or_jpeg
from pipeline.images.prepare import prepare_file

IMAGES_PER_READER = 100
"""Files of one reader: its entry holds the digest of all of them."""

READ_THREADS = 8

SMALL_FILE_BYTES = 1 << 20

FILES_AT_A_TIME = 32
"""Files that are in memory before they are decoded."""

MAX_FILE_BYTES = 1 << 27
"""Bytes of an image file: the largest image (see `decode.MAX_PIXELS`) without compression."""

SUFFIXES = (".png", ".jpg", ".jpeg")

PATH_COLUMN = "path"
"""The only additional column: the path of each image file in its folder."""


@dataclass(frozen=True)
class ImageFolderReader:
    """Some image files, and the labels of their classes if there are any."""

    storage: Storage
    entry: FileEntry
    shape: tuple[int, int]
    fingerprints: tuple[Fingerprint, ...]
    paths: tuple[str, ...]
    preparation: Preparation = AS_IS
    labels: tuple[int, ...] | None = None

    max_runs = 64

    @property
    def bytes_per_row(self) -> int:
        return self.shape[0] * self.shape[1]

    def is_unchanged(self, ranges: Ranges) -> bool:
        return all(
            _fingerprints(self.storage, self.paths[begin:end]) == self.fingerprints[begin:end]
            for begin, end in ranges
        )

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        if other := [name for name in columns if name != PATH_COLUMN]:
            raise DataError(
                f"Image files have no column {other[0]!r}, only {PATH_COLUMN!r}. Leave it out."
            )
        paths = self.paths[begin:end]
        images, reasons = decode_files(
            self._contents(begin, end), len(paths), self.preparation, self.shape
        )
        reasons = {row: f"{paths[row]}: {reason}" for row, reason in reasons.items()}
        ids = np.arange(first_id + begin, first_id + end, dtype=np.int64)
        labels = None if self.labels is None else np.array(self.labels[begin:end], np.int64)
        extra = pa.table({PATH_COLUMN: pa.array(paths, pa.string())} if columns else {})
        return RowBatch(ids, images, labels, extra).drop(reasons)

    def _contents(self, begin: int, end: int) -> Iterator[bytes]:
        read = partial(read_file, self.storage)
        if self.storage.is_local:
            # A small file is read in 8 us; to hand it to a thread and back takes 80.
            yield from map(read, self.paths[begin:end], self.fingerprints[begin:end])
            return
        with ThreadPoolExecutor(READ_THREADS) as threads:
            for start in range(begin, end, FILES_AT_A_TIME):
                part = slice(start, min(start + FILES_AT_A_TIME, end))
                yield from list(threads.map(read, self.paths[part], self.fingerprints[part]))


def read_image(file: pa.NativeFile, size: int) -> bytes:
    """Return so many bytes of an image file; only its beginning if it is too large for one."""
    return bytes(file.read(min(size, MAX_FILE_BYTES)))


def decode_files(
    contents: Iterable[bytes], count: int, preparation: Preparation, shape: tuple[int, int]
) -> tuple[UInt8Array, dict[int, str]]:
    """Return the pixels of so many image files, uint8 (N, height, width), and why one has none."""
    images = np.zeros((count, *shape), np.uint8)
    reasons = dict[int, str]()
    for row, content in enumerate(contents):
        try:
            images[row] = decode_file(content, preparation, shape)
        except DataError as error:
            reasons[row] = str(error)
    return images, reasons


def decode_file(
    content: bytes, preparation: Preparation, shape: tuple[int, int] | None
) -> UInt8Array:
    """Return the pixels of an image file. Raise DataError if it is neither a PNG nor a JPEG."""
    if not is_png_or_jpeg(content):
        raise DataError("It is neither a PNG nor a JPEG.")
    return prepare_file(content, preparation, shape).pixels


def image_files(paths: Sequence[str]) -> list[str]:
    """Return those paths that are image files, by their suffixes."""
    return [path for path in paths if path.lower().endswith(SUFFIXES)]


def open_image_folder(
    storage: Storage,
    paths: Sequence[str],
    *,
    preparation: Preparation = AS_IS,
    size: tuple[int, int] | None = None,
    labels: Mapping[str, int] | None = None,
) -> list[ImageFolderReader]:
    """Return the readers of these image files, `IMAGES_PER_READER` files each.

    The path in the entry of a reader is the folder that its files share.

    `size` is that of the dataset or model; if there is none, the first file that can be decoded
    decides. `labels` are the labels of the paths. Raise DataError if no file can be decoded.
    """
    # Before the files are read: a change during that is noticed later.
    fingerprints = _fingerprints(storage, paths)
    known = list(zip(paths, fingerprints, strict=True))
    contents = ((storage.display(file[0]), read_file(storage, *file)) for file in known)
    shape = size or first_shape(contents, preparation)
    files = map_waiting(lambda file: _entry(storage, *file), known)
    readers = []
    for start in range(0, len(paths), IMAGES_PER_READER):
        part = paths[start : start + IMAGES_PER_READER]
        own = files[start : start + IMAGES_PER_READER]
        entry = FileEntry(
            path=posixpath.commonpath(part),
            bytes=sum(file.bytes for file in own),
            sha256=digest_of(own),
            rows=len(own),
        )
        own_labels = tuple(labels[path] for path in part) if labels else None
        readers.append(
            ImageFolderReader(
                storage,
                entry,
                shape,
                fingerprints[start : start + IMAGES_PER_READER],
                tuple(part),
                preparation,
                own_labels,
            )
        )
    return readers


def read_file(storage: Storage, path: str, fingerprint: Fingerprint) -> bytes:
    """Return the content of an image file, or only its beginning, as `read_image` does."""
    size = fingerprint[0]
    if size <= SMALL_FILE_BYTES:
        # One request to an object store.
        return storage.read(path)
    with storage.open(path) as file:
        return read_image(file, size)


def _fingerprints(storage: Storage, paths: Sequence[str]) -> tuple[Fingerprint, ...]:
    """Return the fingerprint of each file: its size, and what changes with its content."""
    values = iter(storage.fingerprint(*paths))
    return tuple(zip(values, values, strict=True))


def _entry(storage: Storage, path: str, fingerprint: Fingerprint) -> FileEntry:
    size = fingerprint[0]
    if size <= SMALL_FILE_BYTES:
        sha256 = hashlib.sha256(storage.read(path)).hexdigest()
    else:
        with storage.open(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path=path, bytes=size, sha256=sha256)


def first_shape(contents: Iterable[tuple[str, bytes]], preparation: Preparation) -> tuple[int, int]:
    """Return the size of the first image file that can be decoded, of (name, content).

    Raise the DataError of the first file if there is none.
    """
    first_error = DataError("No file is an image.")
    for number, (name, content) in enumerate(contents):
        try:
            height, width = decode_file(content, preparation, None).shape
        except DataError as error:
            if not number:
                first_error = DataError(f"{name}: {error}")
        else:
            return height, width
    raise first_error


def digest_of(files: Iterable[FileEntry]) -> str:
    """Return the sha256 of the paths and digests of several files."""
    lines = "".join(f"{file.path}\0{file.sha256}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
