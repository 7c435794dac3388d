"""The commit protocol: write files, then the manifest; find and verify what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa
from pydantic import ValidationError

from pipeline.artifacts.manifests import FORMAT, FileEntry, Manifest
from pipeline.artifacts.storage import Storage
from pipeline.errors import ArtifactDamaged, ArtifactMissing

M = TypeVar("M", bound=Manifest)


def digest(*parts: object) -> str:
    """12 hex digits that stand for these JSON values: the version of what is made of them."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_file(
    storage: Storage, folder: str, path: str, data: bytes | pa.Buffer, *, rows: int | None = None
) -> FileEntry:
    """Writes a file of an artifact and returns its entry for the manifest."""
    storage.write(f"{folder}/{path}" if folder else path, data)
    return file_entry(path, data, rows=rows)


def file_entry(path: str, data: bytes | pa.Buffer, *, rows: int | None = None) -> FileEntry:
    """The entry of a file with this content."""
    sha256 = hashlib.sha256(data).hexdigest()
    return FileEntry(path=path, bytes=len(data), sha256=sha256, rows=rows)


def read_file(storage: Storage, folder: str, entry: FileEntry) -> bytes:
    """The content of a file of an artifact; ArtifactDamaged where it is not what was committed."""
    with _opened(storage, folder, entry) as file:
        data = bytes(file.read())
        _require(storage, folder, entry, hashlib.sha256(data).hexdigest(), len(data))
        return data


def verify_file(storage: Storage, folder: str, entry: FileEntry) -> None:
    """As `read_file`, for one that is read later, and never whole in memory."""
    with _opened(storage, folder, entry) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        _require(storage, folder, entry, found, file.size())


@contextmanager
def _opened(storage: Storage, folder: str, entry: FileEntry) -> Iterator[pa.NativeFile]:
    path = f"{folder}/{entry.path}" if folder else entry.path
    try:
        with storage.open(path) as file:
            yield file
    except FileNotFoundError:
        raise ArtifactDamaged(
            f"{storage.name(path)} is missing, though its manifest lists it. "
            "Make the artifact again with --force."
        ) from None


def _require(storage: Storage, folder: str, entry: FileEntry, sha256: str, size: int) -> None:
    if sha256 != entry.sha256:
        raise ArtifactDamaged(
            f"{storage.name(f'{folder}/{entry.path}'.lstrip('/'))} has sha256 {sha256[:12]} and "
            f"{size} bytes, but its manifest says {entry.sha256[:12]} and {entry.bytes} bytes. "
            "Make the artifact again with --force."
        )


def commit(storage: Storage, folder: str, manifest: Manifest) -> None:
    """Makes an artifact visible, whole, after its files have been written."""
    text = manifest.model_dump_json(indent=2) + "\n"
    storage.write(_path(folder, type(manifest)), text.encode())


def find(storage: Storage, folder: str, kind: type[M]) -> M | None:
    """The manifest of an artifact, or None where none has been committed."""
    path = _path(folder, kind)
    try:
        text = storage.read(path)
    except FileNotFoundError:
        return None
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ArtifactDamaged(
            f"{storage.name(path)} is not a manifest of this version: "
            f"{where + ': ' if where else ''}{problem['msg']}. "
            "Make the artifact again with --force."
        ) from None


def load(storage: Storage, folder: str, kind: type[M]) -> M:
    """As `find`, but ArtifactMissing, naming the command that makes it, where there is none."""
    if (manifest := find(storage, folder, kind)) is None:
        raise ArtifactMissing(
            f"{storage.name(_path(folder, kind))} is not there. Make it first: {kind.create_command}"
        )
    return manifest


def _path(folder: str, kind: type[Manifest]) -> str:
    return f"{folder}/{kind.file_name}" if folder else kind.file_name
