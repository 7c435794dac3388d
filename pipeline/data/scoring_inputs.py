"""What scoring reads, by name: Parquet, IDX, folders of them or of pictures, globs, a split."""

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

WILD = "*?["


def open_input(root: Storage, names: Sequence[str], image: ImageSpec) -> Rows:
    """The rows of all that `--input` names, in that order; globs and folders in order of paths.

    Raises DataError where something is not images of this size, or not there, naming it.
    """
    parts = tuple(part for name in names for part in _open(root, name, image))
    for part in parts:
        if part.shape != image.shape:
            size = " x ".join(map(str, part.shape))
            raise DataError(
                f"--input {part.storage.display(part.entry.path)!r} holds images of {size}, but the "
                f"model takes {image.height} x {image.width}. Give another model or other images."
            )
    return Rows(parts)


def _open(root: Storage, name: str, image: ImageSpec) -> Iterator[Reader]:
    if dataset := _find_dataset(root, name):
        split = name.rpartition("/")[2]
        if not dataset.shards(split):
            raise DataError(f"--input {name!r}: the splits are {', '.join(dataset.rows)}.")
        yield from parallel_map(
            lambda entry: _open_shard(root, dataset, entry), dataset.shards(split)
        )
        return
    # What follows the question mark of a URI are its options.
    bare, mark, options = name.partition("?") if "://" in name else (name, "", "")
    folder, _, path = bare.rpartition("/")
    while any(wild in folder for wild in WILD):
        folder, _, inner = folder.rpartition("/")
        path = f"{inner}/{path}"
    folder = folder or ("/" if name.startswith("/") else ".")
    storage = Storage(folder + mark + options)
    try:
        if any(wild in path for wild in WILD):
            found = [file for file in storage.files() if fnmatch(file, path)]
        elif storage.is_folder(path):
            found = [file for file in storage.files(path) if file.endswith(".parquet")]
            if not found and (pictures := image_files(storage, path)):
                yield from open_image_folder(storage, path, pictures)
                return
        else:
            found = [path]
        if not found:
            raise DataError(f"--input {redact(name)!r}: nothing to score has such a name.")
        for parts in parallel_map(lambda file: _open_file(storage, file, image), found):
            yield from parts
    except OSError as error:
        raise DataError(
            f"--input {redact(name)!r} could not be read ({error.strerror or error}). Give Parquet, "
            "IDX files of images, a folder of pictures, or NAME/VERSION/SPLIT of a dataset."
        ) from None


def _find_dataset(root: Storage, name: str) -> DatasetManifest | None:
    parts = name.split("/")
    if len(parts) != 3 or not all(parts):
        return None
    return find(root, f"datasets/{parts[0]}/{parts[1]}", DatasetManifest)


def _open_shard(root: Storage, dataset: DatasetManifest, entry: FileEntry) -> ParquetReader:
    """A shard that is what the manifest says, which also says what a look into it would."""
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
    with storage.open(path) as file:
        start = file.read(8)
    if start.startswith(b"PAR1"):
        return [open_parquet(storage, path, image.shape)]
    if is_png_or_jpeg(start):
        return open_image_folder(storage, path, [path])
    return [IdxReader(open_idx(storage, path, rank=3))]
