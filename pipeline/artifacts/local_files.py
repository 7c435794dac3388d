"""Local files: written atomically and durably, and locked, in one folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

LOCK_WAIT_S = 30
"""For a lock that others hold only while they read and write one small file."""

LOCK_POLL_S = 0.02

UNSUPPORTED = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK}
"""Errors of fsync and flock on a file system that lacks them."""

_warned = set[str]()


class LocalFiles:
    """Files below a folder, by relative path."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._fs = fs.LocalFileSystem()

    def open(self, path: str) -> pa.NativeFile:
        return self._fs.open_input_file(self._full(path))

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return bytes(file.read())

    def fingerprint(self, *paths: str) -> tuple[int, ...]:
        infos = self._fs.get_file_info([self._full(path) for path in paths])
        return tuple(value for info in infos for value in (info.size or 0, info.mtime_ns or 0))

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(self._full(path))

    def exists(self, path: str) -> bool:
        return os.path.isfile(self._full(path))

    def files(self, path: str) -> list[str]:
        start = len(self.root.rstrip("/")) + 1
        return [file[start:] for file in _walk(self._full(path))]

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        target = Path(self._full(path))
        _make_folders(target.parent)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
            replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def update(self, path: str, change: Callable[[bytes | None], bytes | None]) -> bytes | None:
        folder, _, name = path.rpartition("/")
        with self.locked(f"{folder}/.{name}.lock".lstrip("/"), wait_s=LOCK_WAIT_S):
            old = None
            with suppress(FileNotFoundError):
                old = self.read(path)
            new = change(old)
            if new is None:
                return old
            self.write(path, new)
            return new

    def delete(self, path: str) -> None:
        Path(self._full(path)).unlink(missing_ok=True)

    def delete_folder(self, path: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self._full(path))

    @contextmanager
    def locked(self, path: str, *, wait_s: float) -> Iterator[None]:
        """Hold a lock that ends with the block, or with the process.

        Raise BlockingIOError if another holds it for `wait_s` seconds.
        """
        file = Path(self._full(path))
        _make_folders(file.parent)
        with file.open("a") as handle:
            _lock(handle.fileno(), file, time.monotonic() + wait_s)
            yield

    def _full(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}" if path else self.root


def replace(temporary: Path, path: Path) -> None:
    """Give a complete file its name, in place of an older one; it outlives a power failure."""
    _fsync(temporary)
    temporary.replace(path)
    _fsync(path.parent)


def _make_folders(folder: Path) -> None:
    """Create a folder and those above it, durably."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        # Another process has just created it, or it is a file.
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    _fsync(folder.parent)


def _fsync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # A folder may allow to create files in it, but not to open it.
        if error.errno not in UNSUPPORTED | {errno.EACCES}:
            raise
        _warn_once(
            "The file system of %s cannot make a write durable (%s). A power failure may lose what "
            "was written last.",
            path.parent,
            error,
        )


def _lock(handle: int, file: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            _warn_once(
                "The file system of %s has no locks (%s). Let only one command write there at a "
                "time.",
                file.parent,
                error,
            )
            return
        time.sleep(LOCK_POLL_S)


def _warn_once(message: str, folder: Path, error: OSError) -> None:
    if message not in _warned:
        _warned.add(message)
        logging.getLogger(__name__).warning(message, folder, error.strerror)


def _walk(folder: str) -> Iterator[str]:
    """Yield the files of a folder and its subfolders; a link to a folder above it is not followed.

    pyarrow follows such links until paths are too long. Raise OSError if a name is not UTF-8.
    """
    waiting = [(folder, frozenset[tuple[int, int]]())]
    while waiting:
        folder, above = waiting.pop()
        try:
            status = os.stat(folder)
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        identity = status.st_dev, status.st_ino
        if identity in above:
            continue
        for entry in entries:
            # Python shows other bytes as surrogates, which have no UTF-8.
            if any("\ud800" <= letter <= "\udfff" for letter in entry.name):
                raise OSError(f"the name {os.fsencode(entry.name)!r} is not UTF-8")
            if entry.is_dir():
                waiting.append((entry.path, above | {identity}))
            elif entry.is_file():
                yield entry.path
