"""The inputs of scoring: Parquet, IDX and image files, folders of them, globs, and datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch

from pipeline.artifacts.commit import find, verify_file
from pipeline.artifacts.manifests import DatasetManifest, FileEntry
from pipeline.artifacts.storage import Storage, parallel_map, redact
from pipeline.contract import ImageSpec
from pipeline.data.readers.idx import IdxReader, open_idx
from pipeline.data.readers.image_folder import image_files, open_image_folder
from pipeline.data.readers.parquet import ParquetReader, open_parquet
from pipeline.data.readers.rows import Reader, Rows
from pipeline.errors import DataError
from pipeline.images.decode import is_png_or_jpeg

WILDCARDS = "*?["


def open_input(root: Storage, names: Sequence[str], image: ImageSpec) -> Rows:
    """Return the rows of all inputs, in order; those of globs and folders in order of paths.

    Raise DataError, which names the input, if it is missing or does not hold images of this size.
    """
    readers = tuple(reader for name in names for reader in _open(root, name, image))
    for reader in readers:
        if reader.shape != image.shape:
            size = " x ".join(map(str, reader.shape))
            path = reader.storage.display(reader.entry.path)
            raise DataError(
                f"--input {path!r} holds images of {size}, but the model takes {image.height} x "
                f"{image.width}. Give another model or other images."
            )
    return Rows(readers)


def _open(root: Storage, name: str, image: ImageSpec) -> Iterator[Reader]:
    """Yield the readers of one input."""
    dataset = _find_dataset(root, name)
    if dataset:
        split = name.rpartition("/")[2]
        if not dataset.shards(split):
            raise DataError(f"--input {name!r}: the splits are {', '.join(dataset.rows)}.")
        yield from parallel_map(
            lambda entry: _open_shard(root, dataset, entry), dataset.shards(split)
        )
        return
    folder, path = _split_path(name)
    storage = Storage(folder)
    try:
        if _has_wildcard(path):
            files = [file for file in storage.files() if fnmatch(file, path)]
        elif storage.is_folder(path):
            files = [file for file in storage.files(path) if file.endswith(".parquet")]
            images = [] if files else image_files(storage, path)
            if images:
                yield from open_image_folder(storage, path, images)
                return
        else:
            files = [path]
        if not files:
            raise DataError(f"--input {redact(name)!r}: no file to score has such a name.")
        for readers in parallel_map(lambda file: _open_file(storage, file, image), files):
            yield from readers
    except OSError as error:
        raise DataError(
            f"--input {redact(name)!r} could not be read ({error.strerror or error}). Give "
            "Parquet, IDX files of images, a folder of image files, or NAME/VERSION/SPLIT of a "
            "dataset."
        ) from None


def _split_path(name: str) -> tuple[str, str]:
    """Split an input into a folder without wildcards, and a path or pattern inside it."""
    location, query = name, ""
    if "://" in name:
        # The query of a URI holds options of the file system, so it belongs to the folder.
        location, mark, options = name.partition("?")
        query = mark + options
    folder, _, path = location.rpartition("/")
    while _has_wildcard(folder):
        folder, _, inner = folder.rpartition("/")
        path = f"{inner}/{path}"
    if not folder:
        folder = "/" if name.startswith("/") else "."
    return folder + query, path


def _has_wildcard(path: str) -> bool:
    return any(wildcard in path for wildcard in WILDCARDS)


def _find_dataset(root: Storage, name: str) -> DatasetManifest | None:
    """Return the dataset if the input is NAME/VERSION/SPLIT of one."""
    components = name.split("/")
    if len(components) != 3 or not all(components):
        return None
    return find(root, f"datasets/{components[0]}/{components[1]}", DatasetManifest)


def _open_shard(root: Storage, dataset: DatasetManifest, entry: FileEntry) -> ParquetReader:
    """Open a shard after checking its digest.

    Shape and classes come from the manifest; the footer is not read.
    """
    folder = f"datasets/{dataset.ref}"
    path = f"{folder}/{entry.path}"
    fingerprint = root.fingerprint(path)
    verify_file(root, folder, entry)
    return ParquetReader(
        root,
        entry.model_copy(update={"path": path}),
        dataset.image.shape,
        fingerprint,
        own_ids=True,
        labelled=True,
        class_names=dataset.image.class_names,
    )


def _open_file(storage: Storage, path: str, image: ImageSpec) -> Sequence[Reader]:
    """Open a file with the reader for its format, detected by the first bytes; IDX if unknown."""
    with storage.open(path) as file:
        start = file.read(8)
    if start.startswith(b"PAR1"):
        return [open_parquet(storage, path, image.shape)]
    if is_png_or_jpeg(start):
        return open_image_folder(storage, path, [path])
    return [IdxReader(open_idx(storage, path, rank=3))]
