"""The layout of a source folder: which files are data, and which split each belongs to.

To add a word for a split: add it to `SPLIT_WORDS`.
"""

from __future__ import annotations

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

    A name with the words of several splits names the last: `train-test` is `test`.
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    return splits[-1] if splits else None


def group_by_folder(
    storage: Storage, paths: Sequence[str], *, by_split: bool = True
) -> dict[str, dict[str, str]]:
    """Return each file's path below the folder of its split, by split and path.

    The outermost level of folders that has several names decides. If none of them names a split, or
    not `by_split`, all files are `train`. Raise DataError if no folder of this level is `train`.
    """
    folders = [path.split("/")[:-1] for path in paths]
    depth = 0
    while folders and all(len(names) > depth for names in folders):
        names = {parts[depth] for parts in folders}
        if len(names) > 1:
            break
        depth += 1
    level = {parts[depth] for parts in folders if len(parts) > depth}
    if not by_split or not any(split_of(name) for name in level):
        return {"train": {path: _below(path, _wrappers(folders)) for path in paths}}
    splits = dict[str, dict[str, str]]()
    others = list[str]()
    for path, parts in zip(paths, folders, strict=True):
        split = split_of(parts[depth]) if len(parts) > depth else None
        if split:
            splits.setdefault(split, {})[path] = _below(path, depth + 1)
        else:
            others.append(path)
    say_skipped(storage, others, "as their folders name no split")
    return resolve_eval(storage, splits, sorted(level))


def group_by_name(storage: Storage, paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split, which the outermost folder or the file's name decides.

    If none names a split, all files are `train`. Raise DataError if some do and none is `train`.
    """
    splits = dict[str, list[str]]()
    others = list[str]()
    for path in paths:
        named = [split for name in path.split("/") if (split := split_of(name))]
        (splits.setdefault(named[0], []) if named else others).append(path)
    if not splits:
        return {"train": list(paths)}
    say_skipped(storage, others, "as neither folder nor name names a split")
    return resolve_eval(storage, splits, sorted({path.split("/")[0] for path in paths}))


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


def _below(path: str, depth: int) -> str:
    return "/".join(path.split("/")[depth:])


def _wrappers(folders: Sequence[Sequence[str]]) -> int:
    """Return how many outer folders all files share, leaving one that may be a class."""
    shared = 0
    while all(len(parts) > shared + 1 for parts in folders):
        if len({parts[shared] for parts in folders}) > 1:
            break
        shared += 1
    return shared
