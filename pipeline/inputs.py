"""What scoring reads: rows of images from a Parquet file, a dataset's split, or an IDX file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import idx
from pipeline.contract import DataError, ImageSpec
from pipeline.idx import Array
from pipeline.manifest import DatasetManifest, FileEntry, find
from pipeline.shards import Ids, pixels
from pipeline.storage import Storage


@dataclass(frozen=True)
class Input:
    """Rows of images in files that were checked; `files` carry digests and, all, their rows."""

    storage: Storage
    folder: str
    kind: Literal["parquet", "idx"]
    image: ImageSpec
    files: tuple[FileEntry, ...]

    @property
    def num_rows(self) -> int:
        return sum(entry.rows or 0 for entry in self.files)

    def path(self, entry: FileEntry) -> str:
        """Where a file of the input lies under its storage."""
        return f"{self.folder}/{entry.path}" if self.folder else entry.path

    def read(self, start: int, stop: int) -> tuple[Ids, Array]:
        """ids int64 (N,) and images uint8 (N, height, width) of a range of rows over all files.

        Where the input has no ids, the position over all files is the id.
        """
        ids: list[Ids] = []
        images: list[Array] = []
        first = 0
        for entry in self.files:
            rows = entry.rows or 0
            begin, end = max(start - first, 0), min(stop - first, rows)
            if begin < end:
                some_ids, some_images = self._read_file(entry, begin, end)
                ids.append(np.arange(first + begin, first + end) if some_ids is None else some_ids)
                images.append(some_images)
            first += rows
        return np.concatenate(ids), np.concatenate(images)

    def _read_file(self, entry: FileEntry, begin: int, end: int) -> tuple[Ids | None, Array]:
        with self.storage.open(self.path(entry)) as file:
            if self.kind == "idx":
                shape = (entry.rows or 0, *self.image.shape)
                return None, idx.read_rows(cast(BinaryIO, file), shape=shape, start=begin, stop=end)
            return _read_parquet(file, self.image, begin, end)


def open_input(root: Storage, name: str, image: ImageSpec) -> Input:
    """Finds and checks what `--input` names: a split of a dataset under the root, or a file.

    Raises DataError where it is not images of this size, naming the file.
    """
    parts = name.split("/")
    if (
        len(parts) == 3
        and all(parts)
        and (dataset := find(root, f"datasets/{parts[0]}/{parts[1]}", DatasetManifest))
    ):
        folder, files = f"datasets/{dataset.ref}", tuple(dataset.shards(parts[2]))
        if not files:
            raise DataError(f"--input {name!r}: the splits are {', '.join(dataset.rows)}.")
        if dataset.image.shape != image.shape:
            raise DataError(_wrong_size(name, dataset.image.shape, image))
        return Input(root, folder, "parquet", image, files)
    folder, _, path = name.rpartition("/")
    storage = Storage(folder or ("/" if name.startswith("/") else "."))
    try:
        with storage.open(path) as file:
            start = file.read(4)
            file.seek(0)
            if start == b"PAR1":
                kind: Literal["parquet", "idx"] = "parquet"
                rows = _check_parquet(file, image, name)
            else:
                kind, rows = "idx", _check_idx(file, image, name)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            entry = FileEntry(path=path, bytes=file.size(), sha256=sha256, rows=rows)
    except OSError as error:
        raise DataError(
            f"--input {name!r} could not be read ({error.strerror or error}). Give a Parquet file, "
            "an IDX file of images, or NAME/VERSION/SPLIT of a dataset."
        ) from None
    return Input(storage, "", kind, image, (entry,))


def _check_idx(file: pa.NativeFile, image: ImageSpec, name: str) -> int:
    found = idx.inspect(cast(BinaryIO, file), name=name, rank=3, compressed_bytes=file.size())
    if found.shape[1:] != image.shape:
        raise DataError(_wrong_size(name, found.shape[1:], image))
    return found.shape[0]


def _check_parquet(file: pa.NativeFile, image: ImageSpec, name: str) -> int:
    """Rows of a Parquet file, of which only the two columns below will ever be read."""
    try:
        parquet = pq.ParquetFile(file)
        columns = parquet.schema_arrow
    except pa.ArrowInvalid as error:
        raise DataError(f"--input {name!r} is not a whole Parquet file: {error}.") from None
    wanted = pa.binary(image.num_pixels)
    if "image" not in columns.names or columns.field("image").type != wanted:
        found = columns.field("image").type if "image" in columns.names else "missing"
        raise DataError(
            f"--input {name!r}: column `image` is {found}, but {wanted} is needed "
            f"({image.height} x {image.width} raw pixels a row)."
        )
    if "id" in columns.names and columns.field("id").type != pa.int64():
        raise DataError(f"--input {name!r}: column `id` is {columns.field('id').type}, not int64.")
    rows = int(parquet.metadata.num_rows)
    if not rows:
        raise DataError(f"--input {name!r} has no rows.")
    return rows


def _read_parquet(
    file: pa.NativeFile, image: ImageSpec, begin: int, end: int
) -> tuple[Ids | None, Array]:
    """Reads the row groups that hold begin..end, and of them these two columns alone."""
    parquet = pq.ParquetFile(file)
    wanted = [name for name in ("id", "image") if name in parquet.schema_arrow.names]
    groups, first, skipped = [], 0, 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if first + rows <= begin:
            skipped += rows
        elif first < end:
            groups.append(group)
        first += rows
    try:
        table = parquet.read_row_groups(groups, columns=wanted).slice(begin - skipped, end - begin)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"Rows of the input could not be read: {error}. Is it damaged?") from None
    for name in wanted:
        if table[name].null_count:
            raise DataError(f"Column `{name}` of the input has nulls. Remove those rows.")
    ids = table["id"].to_numpy() if "id" in wanted else None
    return ids, pixels(table["image"], image)


def _wrong_size(name: str, found: tuple[int, ...], image: ImageSpec) -> str:
    size = " x ".join(map(str, found))
    return (
        f"--input {name!r} holds images of {size}, but the model takes {image.height} x "
        f"{image.width}. Give another model or other images."
    )
