"""Replace an artifact, as `--force` does: readers see the old one until the new one is complete."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Generic, TypeVar

from pipeline.artifacts.commit import decode, encode, file_entry
from pipeline.artifacts.manifests import FileEntry, Manifest
from pipeline.artifacts.storage import Storage
from pipeline.artifacts.threads import parallel_map
from pipeline.errors import ArtifactDamaged, StorageError

M = TypeVar("M", bound=Manifest)


class Replacement(Generic[M]):
    """An artifact that is written beside the one that its folder holds, if it holds one."""

    def __init__(self, storage: Storage, folder: str, kind: type[M]) -> None:
        self._storage, self._folder = storage, folder
        self._path = f"{folder}/{kind.file_name}".lstrip("/")
        self._content: bytes | None = None
        self._old: M | None = None
        with suppress(FileNotFoundError, ArtifactDamaged):
            self._content = storage.read(self._path)
            self._old = decode(storage, folder, kind, self._content)

    def write(self, path: str, data: bytes) -> FileEntry:
        """Write a file and return its entry.

        Its name gets the digest of its content if the old artifact has another file of this name.
        """
        entry = file_entry(path, data)
        old_files = self._old.files if self._old else ()
        if any(old.path == path and old.sha256 != entry.sha256 for old in old_files):
            stem, dot, extension = path.rpartition(".")
            entry = replace(entry, path=f"{stem}-{entry.sha256[:12]}{dot}{extension}")
        self._storage.write(f"{self._folder}/{entry.path}", data)
        return entry

    def commit(self, manifest: M) -> M:
        """Make the new artifact visible, then delete the files that only the old one has.

        Return the manifest with its tables. Raise StorageError if another process has committed
        another artifact since this object was made.
        """
        manifest, new = encode(self._storage, self._folder, manifest)

        def change(content: bytes | None) -> bytes:
            if content not in (self._content, new):
                raise StorageError(
                    f"Another process wrote {self._storage.display(self._path)} in the meantime, "
                    "and it stays. Run again."
                )
            return new

        self._storage.update(self._path, change)
        if self._old:
            delete_replaced(self._storage, self._folder, self._old, manifest)
        return manifest

    def discard(self, paths: Iterable[str]) -> None:
        """Delete files that were written for the new artifact, except those of the old one."""
        kept = {entry.path for entry in self._old.files} if self._old else set()
        new = [f"{self._folder}/{path}".lstrip("/") for path in paths if path not in kept]
        parallel_map(self._storage.delete, new)


def delete_replaced(storage: Storage, folder: str, old: Manifest, new: Manifest) -> None:
    """Delete the files and tables that only the old manifest lists.

    `new` is the manifest as `commit` returned it.
    """
    kept = {entry.path for entry in (*new.files, *new.tables.values())}
    listed = {entry.path for entry in (*old.files, *old.tables.values())}
    paths = [f"{folder}/{path}".lstrip("/") for path in sorted(listed - kept)]
    parallel_map(storage.delete, paths)
