"""Files on any storage root: a local folder, or a URI that pyarrow.fs knows (`s3://`, `gs://`).

A file appears under its name whole or not at all: locally by temporary file, fsync and rename, on
an object store as an upload that is completed at its end. The commit protocol relies on it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import StorageError

Fingerprint: TypeAlias = tuple[int, ...]
"""Sizes in bytes, and times of the last write in ns."""

A = TypeVar("A")

B = TypeVar("B")


class Storage:
    """Files under one root, by relative path; pickles as its root, so Ray can send it anywhere."""

    def __init__(self, root: str) -> None:
        if root.startswith("file://"):
            root = unquote(urlsplit(root).path)
        self.is_local = "://" not in root
        try:
            if self.is_local:
                root = os.path.abspath(os.path.expanduser(root))
                self._fs, self._base = fs.LocalFileSystem(), root
            else:
                self._fs, self._base = fs.FileSystem.from_uri(root)
        except (OSError, pa.ArrowInvalid) as error:
            reason = str(error).replace(root, redact(root))
            raise StorageError(
                f"{redact(root)!r} is not a folder or a URI that works: {reason}."
            ) from None
        self.root = root.rstrip("/") if root != "/" else root

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.root,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def __repr__(self) -> str:
        return f"Storage({self.display()!r})"

    def uri(self, path: str = "") -> str:
        """Return the absolute path or URI of `path`, with its credentials, for other tools."""
        if self.is_local:
            return f"{self.root}/{path}" if path else self.root
        parts = urlsplit(self.root)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}".rstrip("/")))

    def display(self, path: str = "") -> str:
        """Return the same for people, without credentials."""
        return redact(self.uri(path))

    @contextmanager
    def locked(self, path: str, *, wait: bool = False) -> Iterator[None]:
        """Hold a lock that ends with the block, or with the process.

        Raise StorageError if another process holds it, unless told to wait. An object store has no
        locks: there only the atomicity of each file holds.
        """
        if not self.is_local:
            yield
            return
        file = Path(self._full(path))
        with _explained("write", self.display(path)):
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = file.open("a")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise StorageError(
                    f"Another process is working on {self.display(path.rpartition('/')[0])}. "
                    "Wait for it to end, or stop it."
                ) from None
            yield

    @contextmanager
    def open(self, path: str) -> Iterator[pa.NativeFile]:
        """Open a file to read at any position. Raise FileNotFoundError if there is none."""
        full = self._full(path)
        with _explained("read", self.display(path)), self._fs.open_input_file(full) as file:
            yield file

    def read(self, path: str) -> bytes:
        """Return the content of a file. Raise FileNotFoundError if there is none."""
        with self.open(path) as file:
            return bytes(file.read())

    def fingerprint(self, *paths: str) -> Fingerprint:
        """Return sizes and times of the last write, which change with the content of the files."""
        with _explained("read", self.display(paths[0])):
            full = [self._full(path) for path in paths]
            if self.is_local:
                infos = self._fs.get_file_info(full)
            else:
                infos = parallel_map(self._fs.get_file_info, full)
        return tuple(value for info in infos for value in (info.size or 0, info.mtime_ns or 0))

    def is_folder(self, path: str) -> bool:
        """Return whether `path` is a folder; on an object store, a prefix of files."""
        with _explained("read", self.display(path)):
            kind = self._fs.get_file_info(self._full(path)).type
        return bool(kind == fs.FileType.Directory)

    def exists(self, path: str) -> bool:
        """Return whether there is a file of this path."""
        with _explained("read", self.display(path)):
            kind = self._fs.get_file_info(self._full(path)).type
        return bool(kind == fs.FileType.File)

    def files(self, path: str = "") -> list[str]:
        """Return the files of a folder and its subfolders, sorted; none if it does not exist."""
        start = len(self._base.rstrip("/")) + 1
        with _explained("read", self.display(path)):
            if self.is_local:
                return sorted(file[start:] for file in _local_files(self._full(path)))
            selector = fs.FileSelector(self._full(path), allow_not_found=True, recursive=True)
            infos = self._fs.get_file_info(selector)
        return sorted(info.path[start:] for info in infos if info.type == fs.FileType.File)

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        """Write `data` to `path`, atomically and durably, in place of an older file."""
        with _explained("write", self.display(path)):
            if self.is_local:
                _write_local(Path(self._full(path)), data)
            else:
                # In a thread: a signal during the upload would complete a truncated file.
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(self._upload, path, data).result()

    def _upload(self, path: str, data: bytes | pa.Buffer) -> None:
        with self._fs.open_output_stream(self._full(path)) as file:
            file.write(data)

    def delete(self, path: str) -> None:
        """Delete a file or a folder, if it exists."""
        with _explained("delete", self.display(path)):
            kind = self._fs.get_file_info(self._full(path)).type
            if kind == fs.FileType.Directory:
                self._fs.delete_dir(self._full(path))
            elif kind == fs.FileType.File:
                self._fs.delete_file(self._full(path))

    def _full(self, path: str) -> str:
        return f"{self._base}/{path}" if path else self._base


def redact(uri: str) -> str:
    """Return a path or URI without credentials and options."""
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("://")
    # Credentials that are not percent-encoded may contain any character.
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def parallel_map(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Apply `work`, which waits for storage, to each item in threads; return results in order."""
    with ThreadPoolExecutor(32) as threads:
        return list(threads.map(work, items))


class _explained:
    """Turn an error of the file system, except FileNotFoundError, into a StorageError."""

    def __init__(self, verb: str, uri: str) -> None:
        self.verb, self.uri = verb, uri

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            return
        if isinstance(error, OSError | pa.ArrowInvalid):
            reason = getattr(error, "strerror", None) or str(error)
            disk_is_full = getattr(error, "errno", None) == errno.ENOSPC
            advice = _space_advice(self.uri) if disk_is_full else ""
            raise StorageError(f"Could not {self.verb} {self.uri}: {reason}.{advice}") from None


def _space_advice(path: str) -> str:
    folder = next(parent for parent in Path(path).parents if parent.exists())
    free = shutil.disk_usage(folder).free
    return f" {free:,} bytes are free there. Free some space, then run the same command again."


def _local_files(folder: str) -> Iterator[str]:
    """Yield the files of a folder and its subfolders; a link to a folder above it is not followed.

    pyarrow follows such links until paths are too long. Raise StorageError if a name is not UTF-8.
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
                raise StorageError(f"A file name is not UTF-8: {ascii(entry.path)}. Rename it.")
            if entry.is_dir():
                waiting.append((entry.path, above | {identity}))
            elif entry.is_file():
                yield entry.path


def _write_local(path: Path, data: bytes | pa.Buffer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
