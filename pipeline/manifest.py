"""The manifests: what an artifact is, what went into it, and each of its files with its digest.

Commit protocol: the files of an artifact are written first, its manifest last and atomically.
Readers go through the manifest and never list a folder, so they see a whole artifact or none.
Manifests carry no paths, and but for the speed of training no times: the same inputs give the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.contract import ArtifactDamaged, ArtifactMissing, ImageSpec
from pipeline.storage import Storage

FORMAT: Literal[1] = 1
"""Version of the artifacts' format; part of every version, so a change never reads old files."""


class FileEntry(BaseModel):
    """A file of an artifact: path relative to the manifest, size in bytes, rows if it has any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    bytes: int
    sha256: str
    rows: int | None = None


class Manifest(BaseModel):
    """What all manifests hold. `caveat` is what anyone who quotes a figure from here must know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file_name: ClassVar[str] = "manifest.json"
    made_by: ClassVar[str]

    format: Literal[1] = FORMAT
    caveat: str = ""
    files: tuple[FileEntry, ...] = ()

    def file(self, path: str) -> FileEntry:
        return next(entry for entry in self.files if entry.path == path)


class DatasetManifest(Manifest):
    """`datasets/<name>/<version>/`: Parquet shards and rows by split, digests of the source."""

    made_by: ClassVar[str] = "python -m pipeline preprocess"

    kind: Literal["dataset"] = "dataset"
    name: str
    version: str
    image: ImageSpec
    rows: dict[str, int]
    source: dict[str, str]

    @property
    def ref(self) -> str:
        return f"{self.name}/{self.version}"

    def shards(self, split: str) -> list[FileEntry]:
        return [entry for entry in self.files if entry.path.startswith(f"{split}/")]


class RunManifest(Manifest):
    """`runs/<run>/`: settings, device, metrics of each epoch; `checkpoint` holds the weights."""

    made_by: ClassVar[str] = "python -m pipeline train --dataset DATASET"

    kind: Literal["run"] = "run"
    run: str
    dataset: str
    image: ImageSpec
    training: dict[str, Any]
    device: str
    metrics: tuple[dict[str, float], ...]
    checkpoint: str

    @property
    def ref(self) -> str:
        return self.run


class TensorSpec(BaseModel):
    """A tensor of the model in numpy's dtype names; -1 in the shape is the free batch axis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int, ...]


class ModelManifest(Manifest):
    """`models/<name>/<version>/`: one self-contained ONNX file and what serving must know of it."""

    made_by: ClassVar[str] = "python -m pipeline export --run RUN"

    kind: Literal["model"] = "model"
    name: str
    version: str
    run: str
    dataset: str
    image: ImageSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity_max_difference: float
    training: dict[str, Any]

    @property
    def ref(self) -> str:
        return f"{self.name}/{self.version}"


class EvaluationManifest(Manifest):
    """Stands beside a model version's manifest: its metrics by split, and the report's files."""

    file_name: ClassVar[str] = "evaluation.json"
    made_by: ClassVar[str] = "python -m pipeline evaluate --model MODEL"

    kind: Literal["evaluation"] = "evaluation"
    model: str
    dataset: str
    metrics: dict[str, dict[str, Any]]

    @property
    def ref(self) -> str:
        return self.model


class ScoresManifest(Manifest):
    """`--output` of scoring: which model scored which input; rows in = scored + rejected."""

    made_by: ClassVar[str] = "python -m pipeline score"

    kind: Literal["scores"] = "scores"
    model: str
    image: ImageSpec
    probabilities: bool
    columns: tuple[str, ...]
    rows_per_shard: int
    inputs: tuple[FileEntry, ...]
    rows: int
    rejected: int = 0


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
    return describe(path, data, rows=rows)


def describe(path: str, data: bytes | pa.Buffer, *, rows: int | None = None) -> FileEntry:
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
            f"{storage.name(_path(folder, kind))} is not there. Make it first: {kind.made_by}"
        )
    return manifest


def _path(folder: str, kind: type[Manifest]) -> str:
    return f"{folder}/{kind.file_name}" if folder else kind.file_name
