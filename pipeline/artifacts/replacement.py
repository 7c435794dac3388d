"""Replace an artifact, as `--force` does: readers see the old one until the new one is complete."""

from __future__ import annotations

from contextlib import suppress

from pipeline.artifacts.commit import commit, file_entry, find
from pipeline.artifacts.manifests import FileEntry, Manifest
from pipeline.artifacts.storage import Storage
from pipeline.errors import ArtifactDamaged


class Replacement:
    """An artifact that is written beside the one that its folder holds, if it holds one."""

    def __init__(self, storage: Storage, folder: str, kind: type[Manifest]) -> None:
        self._storage, self._folder = storage, folder
        self._old: tuple[FileEntry, ...] = ()
        with suppress(ArtifactDamaged):
            old = find(storage, folder, kind)
            self._old = old.files if old else ()

    def write(self, path: str, data: bytes) -> FileEntry:
        """Write a file and return its entry.

        Its name gets the digest of its content if the old artifact has another file of this name.
        """
        entry = file_entry(path, data)
        if any(old.path == path and old.sha256 != entry.sha256 for old in self._old):
            stem, dot, extension = path.rpartition(".")
            entry = entry.model_copy(update={"path": f"{stem}-{entry.sha256[:12]}{dot}{extension}"})
        self._storage.write(f"{self._folder}/{entry.path}", data)
        return entry

    def commit(self, manifest: Manifest) -> None:
        """Make the new artifact visible, then delete the files that only the old one has."""
        commit(self._storage, self._folder, manifest)
        kept = {entry.path for entry in manifest.files}
        for entry in self._old:
            if entry.path not in kept:
                self._storage.delete(f"{self._folder}/{entry.path}")
