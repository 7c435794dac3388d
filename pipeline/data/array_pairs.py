"""Arrays of images and arrays of their labels, paired by their names: IDX, `.npy` and `.npz`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import BinaryIO, NamedTuple, cast

from pipeline.artifacts.storage import Storage
from pipeline.artifacts.threads import parallel_map
from pipeline.contract import Preparation
from pipeline.data.catalog import Profile
from pipeline.data.layout import SPLIT_WORDS, resolve_eval, say_skipped, split_of
from pipeline.data.readers import array_format
from pipeline.data.readers.arrays import ArrayReader, open_array_file, open_arrays
from pipeline.errors import DataError

IDX_NAME = re.compile(r"[-.]idx\d-(ubyte|byte|short|int|float|double)(\.gz)?$", re.IGNORECASE)

NPY_NAME = re.compile(r"\.npy(\.gz)?$|\.npz$", re.IGNORECASE)

KINDS = {
    **dict.fromkeys(("x", "image", "images", "img", "imgs", "data", "pixels"), "images"),
    **dict.fromkeys(("y", "label", "labels", "target", "targets", "class", "classes"), "labels"),
}
"""The words that tell arrays of images from arrays of labels."""


class ArrayName(NamedTuple):
    """The data set, split and kind (`images` or `labels`) that the name of an array says."""

    prefix: str
    split: str
    kind: str


class Place(NamedTuple):
    """Where an array is: the path of its file, and the member of a `.npz`."""

    path: str
    member: str


Pairs = Mapping[str, Mapping[str, Place]]
"""The places of images and labels, by split and kind."""


def array_paths(paths: Sequence[str]) -> list[str]:
    """Return those paths that are arrays by their names."""
    return [path for path in paths if IDX_NAME.search(path) or NPY_NAME.search(path)]


def find_pairs(storage: Storage, paths: Sequence[str], profile: Profile | None) -> Pairs:
    """Return the images and labels of each split; nothing if there are none of `train`.

    Raise DataError if the folder holds those of several data sets.
    """
    if profile:
        names = set(profile.files.values())
        own = [path for path in paths if _plain_name(path) in names]
        paths = own or paths
    groups = dict[str, dict[str, dict[str, Place]]]()
    skipped = list[str]()
    # The shallowest and shortest of several paths of one array is taken.
    for place in places(storage, sorted(paths, key=lambda path: (path.count("/"), path))):
        name = parse_name(place)
        if name is None:
            skipped.append(place.path)
            continue
        kinds = groups.setdefault(name.prefix, {}).setdefault(name.split, {})
        if name.kind in kinds:
            skipped.append(place.path)
        kinds.setdefault(name.kind, place)
    complete = {
        prefix: splits
        for prefix, splits in groups.items()
        if len(splits.get("train", splits.get("", {}))) == len(set(KINDS.values()))
    }
    if not complete:
        return {}
    if len(complete) > 1:
        prefixes = ", ".join(prefix or "(without a name)" for prefix in sorted(complete))
        raise DataError(
            f"{storage.display()} holds the arrays of several data sets: {prefixes}. Give a folder "
            "with those of one."
        )
    ((prefix, splits),) = complete.items()
    if "" in splits:
        splits.setdefault("train", splits.pop(""))
    skipped += [
        place.path
        for other, rest in groups.items()
        if other != prefix
        for own in rest.values()
        for place in own.values()
    ]
    say_skipped(storage, sorted(set(skipped)), "as their arrays are not of this data set")
    resolved = cast(Pairs, resolve_eval(storage, splits, sorted(splits)))
    for split, places_of in resolved.items():
        if missing := set(KINDS.values()) - set(places_of):
            raise DataError(
                f"{storage.display()} has no {missing.pop()} of the split {split!r}. Give both "
                "files, or neither."
            )
    return resolved


def open_pairs(
    storage: Storage,
    pairs: Pairs,
    *,
    preparation: Preparation,
    size: tuple[int, int] | None,
    transposed: bool,
) -> tuple[dict[str, list[ArrayReader]], dict[str, str]]:
    """Return the readers of each split, and the sha256 of each array by its role."""
    places = [
        (f"{split}_{kind}", place)
        for split, kinds in pairs.items()
        for kind, place in kinds.items()
    ]
    opened = parallel_map(lambda item: open_array_file(storage, *item[1]), places)
    files = {role: file for (role, _), file in zip(places, opened, strict=True)}
    readers = {
        split: [
            open_arrays(
                files[f"{split}_images"],
                files[f"{split}_labels"],
                preparation=preparation,
                size=size,
                transposed=transposed,
            )
        ]
        for split in pairs
    }
    return readers, {role: file.entry.sha256 for role, file in files.items()}


def parse_name(place: Place) -> ArrayName | None:
    """Return what the name of an array says; None if not whether it holds images or labels."""
    stem = re.sub(IDX_NAME, "", place.path.rpartition("/")[2])
    stem = re.sub(NPY_NAME, "", stem)
    words = [word for word in re.split(r"[^a-z0-9]+", f"{stem} {place.member}".lower()) if word]
    kinds = [KINDS[word] for word in words if word in KINDS]
    if not kinds:
        return None
    known = {**SPLIT_WORDS, **KINDS}
    prefix = "-".join(takewhile(lambda word: word not in known, words))
    # A folder may name the split of files that are all called images.npy and labels.npy.
    folders = "/".join(place.path.split("/")[:-1])
    split = split_of(" ".join(words)) or split_of(folders) or ""
    return ArrayName(prefix, split, kinds[-1])


def places(storage: Storage, paths: Sequence[str]) -> list[Place]:
    """Return the places of the arrays in these files."""
    places = []
    for path in paths:
        if path.lower().endswith(".npz"):
            places += [Place(path, member) for member in _members(storage, path)]
        else:
            places.append(Place(path, ""))
    return places


def _members(storage: Storage, path: str) -> list[str]:
    try:
        with storage.open(path) as file:
            return array_format.members(cast(BinaryIO, file))
    except array_format.BROKEN as error:
        raise DataError(
            f"{storage.display(path)} is not a NumPy archive, or is damaged: {error}."
        ) from None


def _plain_name(path: str) -> str:
    """Return the name of a file as MNIST's mirrors have it."""
    name = path.rpartition("/")[2].removesuffix(".gz")
    return name.replace(".idx", "-idx")
