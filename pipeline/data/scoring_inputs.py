"""The inputs of scoring: files of any form, folders of them, globs, and splits of datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pipeline.artifacts.commit import find
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage, redact
from pipeline.artifacts.threads import parallel_map
from pipeline.contract import ImageSpec
from pipeline.data.array_pairs import Place, array_paths, parse_name, places
from pipeline.data.layout import data_files, say_skipped
from pipeline.data.readers.arrays import open_array_file, open_arrays
from pipeline.data.readers.csv import open_csv
from pipeline.data.readers.dataset_shard import ShardReader
from pipeline.data.readers.image_folder import image_files, open_image_folder
from pipeline.data.readers.rows import Reader, Rows
from pipeline.data.readers.table_streams import is_table
from pipeline.data.readers.tables import TABLE_SUFFIXES, has_images, open_table
from pipeline.data.readers.tar import TAR_SUFFIXES, open_tar
from pipeline.errors import DataError
from pipeline.images.decode import is_png_or_jpeg

WILDCARDS = "*?["


def open_input(root: Storage, names: Sequence[str], image: ImageSpec) -> Rows:
    """Return the rows of all inputs, in order; those of globs and folders in order of paths.

    Raise DataError, which names the input, if it is missing or does not hold images of this size.
    """
    readers = tuple(reader for name in names for reader in _open(root, name, image))
    if not readers:
        raise DataError(f"--input {redact(names[0])!r}: its files have no rows.")
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
        folder, shards = f"datasets/{dataset.ref}", dataset.shards(split)
        times = parallel_map(lambda entry: root.fingerprint(f"{folder}/{entry.path}"), shards)
        for entry, fingerprint in zip(shards, times, strict=True):
            yield ShardReader(root, folder, entry, dataset.image, fingerprint)
        return
    folder, path = _split_path(name)
    storage = Storage(folder)
    try:
        if not _has_wildcard(path) and not storage.is_folder(path):
            yield from _open_file(storage, path, image)
            return
        if _has_wildcard(path):
            files = [file for file in storage.files() if _matches(file, path)]
        else:
            files = _choose_files(storage, data_files(storage, path))
        if files and files == image_files(files):
            yield from open_image_folder(
                storage, files, preparation=image.preparation, size=_size(image)
            )
            return
        if not files:
            raise DataError(f"--input {redact(name)!r}: no file to score has such a name.")
        for readers in parallel_map(lambda file: _open_file(storage, file, image), files):
            yield from readers
    except OSError as error:
        raise DataError(
            f"--input {redact(name)!r} could not be read ({error.strerror or error}). Give "
            "files of images (Parquet, Arrow, IDX, NumPy, CSV, tar, PNG, JPEG), globs or folders "
            "of them, or NAME/VERSION/SPLIT of a dataset."
        ) from None


def _choose_files(storage: Storage, paths: Sequence[str]) -> list[str]:
    """Return the files of a folder that hold images; say which are skipped.

    Image files are taken if there are no others, and CSV files if there are no image files, as a
    table beside image files lists them.
    """
    images = image_files(paths)
    tables = [path for path in paths if path.lower().endswith(TABLE_SUFFIXES)]
    has = parallel_map(lambda path: has_images(storage, path), tables)
    chosen = [path for path, keep in zip(tables, has, strict=True) if keep]
    for path in array_paths(paths):
        name = parse_name(Place(path, ""))
        if name is None or name.kind == "images":
            chosen.append(path)
    chosen += [path for path in paths if path.lower().endswith(TAR_SUFFIXES)]
    if not chosen and not images:
        chosen = [path for path in paths if path.lower().endswith(".csv")]
    chosen = sorted(chosen or images)
    taken = set(chosen)
    say_skipped(
        storage,
        [path for path in paths if path not in taken],
        "as they hold no images, or are of another form than the others",
    )
    return chosen


def _matches(path: str, pattern: str) -> bool:
    """Return whether a path matches a pattern, by the rules of a shell: `*` stops at `/`."""
    names, patterns = path.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(
        fnmatchcase(name, wanted) and name.startswith(".") <= wanted.startswith(".")
        for name, wanted in zip(names, patterns, strict=True)
    )


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


def _open_file(storage: Storage, path: str, image: ImageSpec) -> Sequence[Reader]:
    """Open a file with the reader for its format, by its first bytes or its suffix; IDX if unknown.

    Return no readers if the file has no rows.
    """
    with storage.open(path) as file:
        start = file.read(8)
    options: dict[str, Any] = {"preparation": image.preparation, "size": _size(image)}
    suffix = path.lower()
    if is_png_or_jpeg(start):
        return open_image_folder(storage, [path], **options)
    if suffix.endswith(TAR_SUFFIXES):
        return [open_tar(storage, path, **options)]
    if is_table(start) or suffix.endswith((*TABLE_SUFFIXES, ".csv")):
        open_rows = open_csv if suffix.endswith(".csv") else open_table
        reader = open_rows(storage, path, hint=image.shape, **options)
        return [reader] if reader else []
    member = ""
    if suffix.endswith(".npz"):
        member = _only_member(storage, path)
    images = open_array_file(storage, path, member)
    return [open_arrays(images, None, hint=image.shape, **options)]


def _only_member(storage: Storage, path: str) -> str:
    """Return the array of a `.npz` that holds images. Raise DataError if not one does."""
    names = {place.member: parse_name(place) for place in places(storage, [path])}
    images = [member for member, name in names.items() if name and name.kind == "images"]
    others = [member for member, name in names.items() if name is None]
    candidates = images or others
    if len(candidates) != 1:
        raise DataError(
            f"{storage.display(path)} holds the arrays {', '.join(names)[:99] or '(none)'}. Give "
            "one with a single array of images."
        )
    return candidates[0]


def _size(image: ImageSpec) -> tuple[int, int] | None:
    """Return the size to which images are fitted; None if they must have it."""
    return None if image.preparation.fit == "none" else image.shape
