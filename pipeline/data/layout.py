"""The layout of a source folder: which files are data, and which split each belongs to.

To add a word for a split: add it to `SPLIT_WORDS`.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pipeline.artifacts.storage import Storage
from pipeline.console import say
from pipeline.errors import DataError

Files = TypeVar("Files")

SPLITS = ("train", "val", "test")
"""The splits of a dataset, in the order of ids."""

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "t10k": "test",
    "eval": "eval",
    "evaluation": "eval",
}
"""The words that name a split in any case. `eval` is `test`, or `val` if there is a `test` too."""

WORDS = ", ".join(SPLIT_WORDS)


def data_files(storage: Storage, folder: str = "") -> list[str]:
    """Return the paths of the files of a folder, without hidden ones; say how many were hidden.

    Names that begin with `.` or `_` are hidden, such as those that macOS and notebooks leave.
    """
    paths = storage.files(folder)
    start = len(folder) + 1 if folder else 0
    visible = [path for path in paths if not re.search(r"(^|/)[._]", path[start:])]
    hidden = len(paths) - len(visible)
    if hidden:
        say(
            f"{storage.display(folder)}: {hidden:,} files whose names begin with . or _ are skipped"
        )
    return visible


def say_skipped(storage: Storage, paths: Sequence[str], reason: str) -> None:
    """Say that files of the source are not part of the dataset, and why."""
    if paths:
        say(f"{storage.display()}: {len(paths):,} files are skipped, {reason} ({paths[0]} ...)")


def split_of(name: str) -> str | None:
    """Return the split that a folder or file name holds as a word, or None.

    Digits may follow the word: `train1` is `train`. A name with the words of several splits names
    the last: `train-test` is `test`.
    """
    words = re.findall(r"t10k|[a-z]+", name.lower())
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    return splits[-1] if splits else None


def group_by_folder(storage: Storage, paths: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the class of each image file, by split and path: its folders but that of the split.

    The outermost folder that names a split decides, not counting those that all files share. A
    folder of files alone names one only if it and all folders beside it are called as splits are:
    `train` beside `bus` is a class. If no folder names a split, all files are `train`. The class
    of a file without another folder is "". Raise DataError if files of other splits exist, but none
    of `train`.
    """
    shared = _num_shared([_folders(path) for path in paths])
    classes = _class_folders(paths)
    splits = dict[str, dict[str, list[str]]]()
    others = list[str]()
    for path in paths:
        folders = _folders(path)[shared:]
        names = [split_of(folder) for folder in folders]
        if path.rpartition("/")[0] in classes:
            names[-1:] = []
        split = next((name for name in names if name), None)
        if split is None:
            others.append(path)
        else:
            folders.pop(names.index(split))
            splits.setdefault(split, {})[path] = folders
    if not splits:
        return {"train": name_classes({path: _folders(path) for path in paths})}
    say_skipped(storage, others, "as none of their folders names a split")
    seen = sorted({path.split("/")[shared] for path in paths})
    resolved = resolve_eval(storage, splits, seen)
    named = name_classes({p: folders for own in resolved.values() for p, folders in own.items()})
    return {split: {path: named[path] for path in own} for split, own in resolved.items()}


def _class_folders(paths: Sequence[str]) -> set[str]:
    """Return the folders that hold files alone, and are not all called as splits are."""
    parents = {posixpath.dirname(path) for path in paths}
    beside = dict[str, set[str]]()
    pending = parents
    while pending:
        for folder in pending:
            beside.setdefault(posixpath.dirname(folder), set()).add(folder)
        pending = {posixpath.dirname(folder) for folder in pending} - {""}
    return {
        folder
        for folder in parents - beside.keys()
        if not all(
            name.rstrip("0123456789").lower() in SPLIT_WORDS
            for name in map(posixpath.basename, beside[posixpath.dirname(folder)])
        )
    }


def name_classes(folders: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the class of each path: its folders, without outer ones that all share, but the last.

    So `0/x` and `1/x` are two classes.
    """
    depth = min(map(len, folders.values()))
    shared = min(_num_shared(list(folders.values())), max(0, depth - 1))
    return {path: "/".join(own[shared:]) for path, own in folders.items()}


def _folders(path: str) -> list[str]:
    return path.split("/")[:-1]


def _num_shared(folders: Sequence[Sequence[str]]) -> int:
    """Return the number of outer folders that are the same for all files."""
    return len(os.path.commonprefix([list(own) for own in folders]))


def group_by_name(storage: Storage, paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split, which the outermost folder or the file's name decides.

    If none names a split, all files are `train`. Raise DataError if some do and none is `train`.
    """
    shared = _num_shared([_folders(path) for path in paths])
    splits = dict[str, list[str]]()
    others = list[str]()
    for path in paths:
        named = [split for name in path.split("/")[shared:] if (split := split_of(name))]
        (splits.setdefault(named[0], []) if named else others).append(path)
    if not splits:
        return {"train": list(paths)}
    say_skipped(storage, others, "as neither folder nor name names a split")
    return resolve_eval(storage, splits, sorted({path.split("/")[shared] for path in paths}))


def resolve_eval(
    storage: Storage, splits: Mapping[str, Files], names: Sequence[str]
) -> dict[str, Files]:
    """Return the files of the splits in order, those of `eval` as `test` or `val`.

    Raise DataError, which lists the `names` that were seen, if there are none of `train`.
    """
    resolved = dict(splits)
    evaluation = resolved.pop("eval", None)
    if evaluation is not None:
        split = "val" if "test" in resolved else "test"
        if split in resolved:
            raise DataError(
                f"{storage.display()} has files of val, test and eval. Leave two of them."
            )
        resolved[split] = evaluation
    if "train" not in resolved:
        raise DataError(
            f"{storage.display()} has no files of the split 'train', only {', '.join(names[:9])}. "
            f"Name folders or files after their splits: {WORDS}, in any case."
        )
    return {split: resolved[split] for split in SPLITS if split in resolved}
