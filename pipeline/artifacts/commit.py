"""The commit protocol: write the files, then the manifest; find, load and verify them."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import chain
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from pipeline.artifacts import file_table
from pipeline.artifacts.manifests import MAJOR, MINOR, FileEntry, Manifest
from pipeline.artifacts.storage import Storage
from pipeline.contract import VERSION
from pipeline.errors import ArtifactDamaged, ArtifactMissing, ArtifactTooNew

M = TypeVar("M", bound=Manifest)

MAX_LISTED = 10_000
"""Entries that a field of a manifest lists itself; more are in a table beside it."""


def digest(*values: object) -> str:
    """Return the first 12 hex digits of the SHA-256 of these JSON values.

    It is the version of the artifact that they define.
    """
    text = json.dumps([MAJOR, *values], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_file(
    storage: Storage, folder: str, path: str, data: bytes | pa.Buffer, *, rows: int | None = None
) -> FileEntry:
    """Write a file of an artifact and return its entry for the manifest."""
    storage.write(_join(folder, path), data)
    return file_entry(path, data, rows=rows)


def file_entry(path: str, data: bytes | pa.Buffer, *, rows: int | None = None) -> FileEntry:
    """Return the entry of a file with this content."""
    sha256 = hashlib.sha256(data).hexdigest()
    return FileEntry(path=path, bytes=len(data), sha256=sha256, rows=rows)


def read_file(storage: Storage, folder: str, entry: FileEntry) -> bytes:
    """Return the content of a file of an artifact.

    Raise ArtifactDamaged if it is missing or differs from its entry in the manifest.
    """
    path = _join(folder, entry.path)
    try:
        data = storage.read(path)
    except FileNotFoundError:
        raise ArtifactDamaged(
            f"{storage.display(path)} is missing, though its manifest lists it. "
            "Build the artifact again with --force."
        ) from None
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != entry.sha256:
        raise ArtifactDamaged(
            f"{storage.display(path)} has sha256 {sha256[:12]} and {len(data)} bytes, but its "
            f"manifest says {entry.sha256[:12]} and {entry.bytes} bytes. Build the artifact again "
            "with --force."
        )
    return data


def commit(storage: Storage, folder: str, manifest: M) -> M:
    """Make an artifact visible, as a whole, after its files have been written.

    Return the manifest with its tables.
    """
    manifest, content = encode(storage, folder, manifest)
    storage.write(_join(folder, manifest.file_name), content)
    return manifest


def encode(storage: Storage, folder: str, manifest: M) -> tuple[M, bytes]:
    """Write the tables of a manifest; return it with these, and the content of its file."""
    tables = _write_tables(storage, folder, manifest)
    listed = manifest.model_copy(update={"tables": tables, **dict.fromkeys(tables, ())})
    fields = listed.model_dump_json(indent=2).removeprefix("{")
    header = f'{{\n  "format": "{MAJOR}.{MINOR}",\n  "written_by": "{VERSION}",'
    return manifest.model_copy(update={"tables": tables}), f"{header}{fields}\n".encode()


def find(storage: Storage, folder: str, kind: type[M]) -> M | None:
    """Return the manifest of an artifact, or None if none has been committed.

    Raise ArtifactDamaged if the file is not a manifest of this kind, ArtifactTooNew if its format
    is one of a later version of this project.
    """
    try:
        content = storage.read(_join(folder, kind.file_name))
    except FileNotFoundError:
        return None
    return decode(storage, folder, kind, content)


def decode(storage: Storage, folder: str, kind: type[M], content: bytes) -> M:
    """Return the manifest of this content, with the entries of its tables, as `find` does."""
    name = storage.display(_join(folder, kind.file_name))
    try:
        fields = from_json(content)
        if not isinstance(fields, dict):
            raise ValueError("it is not a JSON object")
        is_newer = _check_format(name, fields)
        manifest = kind.model_validate(fields, extra="ignore" if is_newer else None)
        return _read_tables(storage, folder, manifest)
    except ValueError as error:
        raise ArtifactDamaged(
            f"{name} is not a valid manifest: {_describe(error)}. "
            "Build the artifact again with --force."
        ) from None


def _write_tables(storage: Storage, folder: str, manifest: Manifest) -> dict[str, FileEntry]:
    """Write fields of very many entries as tables; return the entries of these by field."""
    tables = dict[str, FileEntry]()
    for name in type(manifest).fields_of_entries:
        entries = getattr(manifest, name)
        if len(entries) > MAX_LISTED:
            table = file_table.encode(entries)
            digits = hashlib.sha256(table).hexdigest()[:12]
            path = f"{name}-{digits}.parquet"
            tables[name] = write_file(storage, folder, path, table, rows=len(entries))
    return tables


def _read_tables(storage: Storage, folder: str, manifest: M) -> M:
    """Return the manifest with the entries of its tables. Raise ValueError if one is not valid."""
    fields = dict[str, tuple[FileEntry, ...]]()
    for name, entry in manifest.tables.items():
        if name not in type(manifest).fields_of_entries:
            raise ValueError(f"tables: {name!r} is not a field of entries")
        entries = TypeAdapter[Any](type(manifest).model_fields[name].rebuild_annotation())
        parts = map(entries.validate_python, file_table.decode(read_file(storage, folder, entry)))
        fields[name] = tuple(chain.from_iterable(parts))
    return manifest.model_copy(update=fields)


def _check_format(name: str, fields: dict[str, object]) -> bool:
    """Remove the header; return whether the format is a newer minor one, with more fields.

    Raise ArtifactTooNew for a newer major one, ValueError if there is none.
    """
    # Up to version 0.2.0 of this project the format was the number 1.
    format_ = str(fields.pop("format", ""))
    writer = fields.pop("written_by", "0.2.0")
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", format_):
        raise ValueError(f"format: {format_!r} is not MAJOR.MINOR")
    major, _, minor = format_.partition(".")
    if int(major) > MAJOR:
        raise ArtifactTooNew(
            f"{name} has format {format_}, but this version, {VERSION}, reads formats up to "
            f"{MAJOR}. Install version {writer} of this project, which wrote it, or a later one."
        )
    return int(minor or 0) > MINOR


def _describe(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    field = ".".join(map(str, problem["loc"]))
    return f"{field}: {problem['msg']}" if field else problem["msg"]


def load(storage: Storage, folder: str, kind: type[M]) -> M:
    """Return the manifest of an artifact.

    Raise ArtifactMissing, with the command that builds it, if none has been committed.
    """
    manifest = find(storage, folder, kind)
    if manifest is None:
        path = storage.display(_join(folder, kind.file_name))
        raise ArtifactMissing(f"{path} does not exist. Build it first: {kind.create_command}")
    return manifest


def _join(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder else path
