"""Folders of source files: the form of their files, and the readers of each split.

To add a form: write its reader (see `readers`), and add a function to `FORMS` that returns an
`OpenedFolder`, or None if the folder holds no files of the form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.artifacts.storage import Storage
from pipeline.artifacts.threads import parallel_map
from pipeline.contract import AS_IS, Preparation
from pipeline.data import layout
from pipeline.data.array_pairs import array_paths, find_pairs, open_pairs
from pipeline.data.catalog import Profile
from pipeline.data.classes import check_number
from pipeline.data.layout import group_by_folder, group_by_name, name_classes, say_skipped
from pipeline.data.readers.csv import open_csv
from pipeline.data.readers.image_folder import digest_of, image_files, open_image_folder
from pipeline.data.readers.rows import LabelledReader, Reader, source_changed_error
from pipeline.data.readers.table_columns import LABEL_NAMES
from pipeline.data.readers.tables import TABLE_SUFFIXES, has_images, open_table
from pipeline.data.readers.tar import LABEL_SUFFIXES, TAR_SUFFIXES, open_tar
from pipeline.errors import DataError, SettingError

LIST_SUFFIXES = (".csv", ".txt")


@dataclass(frozen=True)
class Folder:
    """A folder of source files, and what its images are prepared for.

    `split_list`, if given, are the splits of its files by path. `one_split`: a column assigns rows
    to splits, so all files are `train`.
    """

    storage: Storage
    paths: Sequence[str]
    profile: Profile | None = None
    preparation: Preparation = AS_IS
    size: tuple[int, int] | None = None
    split_list: Mapping[str, str] | None = None
    one_split: bool = False

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Return the paths of files with one of these suffixes, in any case."""
        return [path for path in self.paths if path.lower().endswith(suffixes)]

    def group(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """Return the files of each split, by the list or by their names."""
        if self.one_split:
            return {"train": list(paths)}
        if self.split_list is None:
            return group_by_name(self.storage, paths)
        splits = self._listed(paths)
        return layout.resolve_eval(self.storage, splits, sorted(splits))

    def group_images(self, paths: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the class of each image file by split and path, by the list or by the folders."""
        if self.split_list is None:
            return group_by_folder(self.storage, paths)
        classes = name_classes({path: path.split("/")[:-1] for path in paths})
        splits = self._listed(paths)
        groups = {split: {path: classes[path] for path in own} for split, own in splits.items()}
        return layout.resolve_eval(self.storage, groups, sorted(groups))

    def _listed(self, paths: Sequence[str]) -> dict[str, list[str]]:
        assert self.split_list is not None
        splits = dict[str, list[str]]()
        for path in paths:
            if path in self.split_list:
                splits.setdefault(self.split_list[path], []).append(path)
        absent = sorted(set(self.split_list) - set(paths))
        if absent:
            raise DataError(
                f"--data.split-by lists {len(absent):,} paths that {self.storage.display()} lacks "
                f"({absent[0][:99]!r} ...). Paths are relative to it."
            )
        others = [path for path in paths if path not in self.split_list]
        say_skipped(self.storage, others, "as --data.split-by does not list them")
        return splits


@dataclass(frozen=True)
class OpenedFolder:
    """Readers of each split; the sha256 of each role, split or `SPLIT:PATH`; and the classes, if
    folders name them, with their number of images in `train`."""

    readers: Mapping[str, Sequence[Reader]]
    digests: Mapping[str, str]
    class_names: tuple[str, ...] | None = None
    train_counts: tuple[int, ...] = ()


def open_folder(folder: Folder) -> OpenedFolder:
    """Open the files of a folder with the reader of their form.

    Files of other forms are skipped, which is said. Raise DataError if there are none of any form.
    """
    try:
        for open_form in FORMS:
            opened = open_form(folder)
            if opened:
                return opened
    except FileNotFoundError:
        raise source_changed_error(folder.storage.display()) from None
    if folder.profile:
        files = ", ".join(folder.profile.files.values())
        raise DataError(
            f"{folder.storage.display()} does not hold the files of this data set: {files}, "
            "gzipped or not. For files of your own, give another name with --data.name."
        )
    seen = sorted({path.split("/")[0] for path in folder.paths})
    raise DataError(
        f"{folder.storage.display()} holds no images with labels: it has {_list(seen)}. Give with "
        "--data.source IDX or NumPy files of images and labels; Parquet, Arrow, CSV or tar files "
        "named after their splits; or image files as SPLIT/CLASS/*.png. Splits are named "
        f"{layout.WORDS}, in any case."
    )


def _open_arrays(folder: Folder) -> OpenedFolder | None:
    paths = array_paths(folder.paths)
    pairs = find_pairs(folder.storage, paths, folder.profile) if paths else {}
    if not pairs:
        return None
    if folder.split_list is not None:
        raise SettingError(
            "--data.split-by lists files, but IDX and NumPy arrays name their splits themselves. "
            "Leave it out, or give a column."
        )
    _say_other_forms(folder, paths)
    readers, digests = open_pairs(
        folder.storage,
        pairs,
        preparation=folder.preparation,
        size=folder.size,
        transposed=bool(folder.profile and folder.profile.transposed),
    )
    return OpenedFolder(readers, digests)


def _open_tables(folder: Folder) -> OpenedFolder | None:
    paths = folder.with_suffix(*TABLE_SUFFIXES)
    if paths:
        keep = parallel_map(lambda path: has_images(folder.storage, path), paths)
        paths = [path for path, has in zip(paths, keep, strict=True) if has]
    if folder.profile or not paths:
        return None
    return _open_labelled(folder, paths, open_table)


def _open_csv(folder: Folder) -> OpenedFolder | None:
    paths = folder.with_suffix(".csv")
    images = image_files(folder.paths)
    # A table beside image files lists them; it holds no pixels.
    if folder.profile or not paths or images:
        return None
    return _open_labelled(folder, paths, open_csv)


def _open_tar(folder: Folder) -> OpenedFolder | None:
    paths = folder.with_suffix(*TAR_SUFFIXES)
    if folder.profile or not paths:
        return None
    return _open_labelled(folder, paths, open_tar)


def _open_labelled(
    folder: Folder, paths: Sequence[str], open_file: Callable[..., LabelledReader | None]
) -> OpenedFolder:
    """Open files that hold images with their labels; leave out a `test` without labels."""
    _say_other_forms(folder, paths)
    readers = dict[str, list[Reader]]()
    digests = dict[str, str]()
    for split, files in folder.group(paths).items():
        opened = parallel_map(
            lambda path: open_file(
                folder.storage, path, preparation=folder.preparation, size=folder.size
            ),
            files,
        )
        own = [reader for reader in opened if reader is not None]
        unlabelled = [reader for reader in own if not reader.labelled]
        if split == "test" and own and len(unlabelled) == len(own):
            say_skipped(folder.storage, files, "as they have no labels")
            continue
        if unlabelled:
            path = unlabelled[0].entry.path
            raise DataError(
                f"{folder.storage.display(path)} has no labels. Tables have them in a column "
                f"{', '.join(LABEL_NAMES)}, tar files as {', '.join(LABEL_SUFFIXES)} beside images."
            )
        empty = [path for path, reader in zip(files, opened, strict=True) if reader is None]
        say_skipped(folder.storage, empty, "as they have no rows")
        if own:
            readers[split] = list(own)
            # With the split: a list may say another one of the same file.
            digests |= {f"{split}:{reader.entry.path}": reader.entry.sha256 for reader in own}
    if "train" not in readers:
        raise DataError(f"{folder.storage.display()}: the files of train have no rows.")
    return OpenedFolder(readers, digests)


def _open_images(folder: Folder) -> OpenedFolder | None:
    paths = image_files(folder.paths)
    if folder.profile or not paths:
        return None
    _say_other_forms(folder, paths)
    groups = folder.group_images(paths)
    classes = {path: name for own in groups.values() for path, name in own.items()}
    if alone := [path for path, name in classes.items() if not name]:
        raise DataError(
            f"{folder.storage.display(alone[0])} lies in no folder that names its class. Image "
            "files are SPLIT/CLASS/*.png, or CLASS/*.png without splits."
        )
    names = tuple(sorted(set(classes.values())))
    check_number(len(names))
    indices = {name: index for index, name in enumerate(names)}
    labels = {path: indices[name] for path, name in classes.items()}
    readers = dict[str, list[Reader]]()
    digests = dict[str, str]()
    for split, files in groups.items():
        own = open_image_folder(
            folder.storage,
            list(files),
            preparation=folder.preparation,
            size=folder.size,
            labels=labels,
        )
        readers[split] = list(own)
        digests[split] = digest_of(reader.entry for reader in own)
    train = Counter(classes[path] for path in groups["train"])
    return OpenedFolder(readers, digests, names, tuple(train[name] for name in names))


FORMS = (_open_arrays, _open_tables, _open_tar, _open_csv, _open_images)
"""The forms of files, the first of which a folder holds is taken."""


def _say_other_forms(folder: Folder, own: Sequence[str]) -> None:
    """Say which files are not read."""
    taken = set(own)
    others = [path for path in folder.paths if path not in taken]
    say_skipped(folder.storage, others, f"as {own[0]} and others are of another form")


def read_split_list(storage: Storage, path: str) -> dict[str, str]:
    """Return the split of each path of a list: lines of `path,split`.

    Raise DataError if a line is not of this form, or a path is listed twice.
    """
    splits = dict[str, str]()
    try:
        text = storage.read(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"--data.split-by {path!r}: the source has no such file.") from None
    except UnicodeDecodeError:
        raise DataError(f"--data.split-by {path!r} is not a text file in UTF-8.") from None
    for number, line in enumerate(text.splitlines(), 1):
        listed, _, word = line.rpartition(",")
        if not line or (number == 1 and line == "path,split"):
            continue
        listed = listed.strip('"')
        split = layout.split_of(word)
        if split is None or not listed or listed in splits:
            raise DataError(
                f"{storage.display(path)}, line {number}: {line[:99]!r} is not PATH,SPLIT with a "
                f"path that is listed once, and one of {layout.WORDS}."
            )
        splits[listed] = split
    return splits


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:9])
    if not names:
        return "no files"
    return f"{shown}, ..." if len(names) > 9 else shown
