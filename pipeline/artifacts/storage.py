"""Files on any storage root: a local folder, or a URI of a bucket (`s3://`, `gs://`).

A file appears under its name whole or not at all: locally by temporary file, fsync and rename, on
an object store as an upload that becomes visible at its end. The commit protocol relies on it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from pipeline.artifacts.local_files import LocalFiles
from pipeline.artifacts.object_files import ObjectFiles
from pipeline.artifacts.threads import parallel_map
from pipeline.errors import StorageError

PART_BYTES = 1 << 30
"""Parts of a file that are hashed in parallel."""

CHUNK_BYTES = 1 << 20
"""Read at a time."""

Fingerprint: TypeAlias = tuple[int, ...]
"""Sizes in bytes, and times of the last write in ns or digests of the server's tag."""


class Storage:
    """Files under one root, by relative path; pickles as its root, so Ray can send it anywhere."""

    def __init__(self, root: str) -> None:
        if root.startswith("file://"):
            root = unquote(urlsplit(root).path)
        self.is_local = "://" not in root
        if self.is_local:
            root = os.path.abspath(os.path.expanduser(root))
        self.root = root.rstrip("/") if root != "/" else root
        try:
            self.root.encode()
            self._files = LocalFiles(self.root) if self.is_local else ObjectFiles(self.root)
        except ValueError as error:
            raise StorageError(
                f"{redact(root)!r} is not a folder or a URI that works: {error}."
            ) from None

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
            return f"{self.root.rstrip('/')}/{path}" if path else self.root
        location, mark, options = self.root.partition("?")
        return f"{location.rstrip('/')}/{path}".rstrip("/") + mark + options

    def display(self, path: str = "") -> str:
        """Return the same for people, without credentials."""
        return redact(self.uri(path))

    def split(self) -> tuple[Storage, str]:
        """Return the folder of this root, as a root, and the name that this root has in it."""
        location, mark, options = self.root.partition("?" if not self.is_local else "\0")
        folder, _, name = location.rpartition("/")
        return Storage((folder or "/") + mark + options), name

    @contextmanager
    def locked(self, path: str, *, wait_s: float = 0) -> Iterator[None]:
        """Hold a lock that ends with the block, or with the process.

        Raise StorageError if another process holds it for `wait_s` seconds. An object store has no
        locks: there only the atomicity of each file holds.
        """
        if not isinstance(self._files, LocalFiles):
            yield
            return
        with ExitStack() as stack:
            with self._explained("write", path):
                stack.enter_context(self._files.locked(path, wait_s=wait_s))
            yield

    @contextmanager
    def open(self, path: str) -> Iterator[pa.NativeFile]:
        """Open a file to read at any position. Raise FileNotFoundError if there is none."""
        with self._explained("read", path), self._files.open(path) as file:
            yield file

    def read(self, path: str) -> bytes:
        """Return the content of a file. Raise FileNotFoundError if there is none."""
        with self._explained("read", path):
            return self._files.read(path)

    def fingerprint(self, *paths: str) -> Fingerprint:
        """Return numbers that change with the content of the files; zeros for a missing one."""
        with self._explained("read", paths[0]):
            return self._files.fingerprint(*paths)

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of a file, in hex.

        A file of over 1 GiB is hashed in parts of 1 GiB by several threads; its digest is that of
        the digests of the parts.
        """
        with self.open(path) as file:
            starts = range(0, max(1, file.size()), PART_BYTES)
        parts = parallel_map(lambda start: self._hash_part(path, start), starts)
        return parts[0].hex() if len(parts) == 1 else hashlib.sha256(b"".join(parts)).hexdigest()

    def _hash_part(self, path: str, start: int) -> bytes:
        digest = hashlib.sha256()
        with self.open(path) as file:
            file.seek(start)
            left = PART_BYTES
            while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
        return digest.digest()

    def is_folder(self, path: str) -> bool:
        """Return whether `path` is a folder; on an object store, a prefix of files."""
        with self._explained("read", path):
            return self._files.is_folder(path)

    def exists(self, path: str) -> bool:
        """Return whether there is a file of this path."""
        with self._explained("read", path):
            return self._files.exists(path)

    def files(self, path: str = "") -> list[str]:
        """Return the files of a folder and its subfolders, sorted; none if it does not exist."""
        with self._explained("read", path):
            return sorted(self._files.files(path))

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        """Write `data` to `path`, atomically and durably, in place of an older file."""
        with self._explained("write", path):
            self._files.write(path, data)

    def update(self, path: str, change: Callable[[bytes | None], bytes | None]) -> bytes | None:
        """Replace the content of a file by the result of `change`; return the new content.

        `change` gets None if there is no file, and returns None to leave all as it is. No update of
        another process is lost: there is a lock locally, and a conditional write on an object
        store, which may call `change` several times.
        """
        with self._explained("write", path):
            return self._files.update(path, change)

    def delete(self, path: str) -> None:
        """Delete a file, if it exists."""
        with self._explained("delete", path):
            self._files.delete(path)

    def delete_folder(self, path: str) -> None:
        """Delete a folder and all that it holds, if it exists. The path is never one of a file."""
        with self._explained("delete", path):
            self._files.delete_folder(path)

    @contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        """Raise an error of the system as a StorageError, except that a file to read is missing."""
        where = self.display(path)
        try:
            yield
        except BlockingIOError:
            raise StorageError(
                f"Another process is working on {where.rpartition('/')[0]}. "
                "Wait for it to end, or stop it."
            ) from None
        except (OSError, pa.ArrowInvalid) as error:
            if isinstance(error, FileNotFoundError) and verb == "read":
                raise
            reason = getattr(error, "strerror", None) or str(error)
            advice = _space_advice(where) if getattr(error, "errno", 0) == errno.ENOSPC else ""
            raise StorageError(f"Could not {verb} {where}: {reason}.{advice}") from None


def redact(uri: str) -> str:
    """Return a path or URI without credentials and options."""
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("://")
    # Credentials that are not percent-encoded may contain any character.
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _space_advice(path: str) -> str:
    folder = next(parent for parent in Path(path).parents if parent.exists())
    free = shutil.disk_usage(folder).free
    return f" {free:,} bytes are free there. Free some space, then run the same command again."
