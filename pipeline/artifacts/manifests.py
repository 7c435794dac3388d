"""The manifests: what an artifact is, what went into it, and each of its files with its digest.

Commit protocol: the files of an artifact are written first, its manifest last and atomically.
Readers go through the manifest and never list a folder, so they see a whole artifact or none.
Manifests carry no paths, and but for the speed of training no times: the same inputs give the same
bytes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.contract import ImageSpec

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
    create_command: ClassVar[str]

    format: Literal[1] = FORMAT
    caveat: str = ""
    files: tuple[FileEntry, ...] = ()

    def file(self, path: str) -> FileEntry:
        return next(entry for entry in self.files if entry.path == path)


class DatasetManifest(Manifest):
    """`datasets/<name>/<version>/`: Parquet shards and rows by split, digests of the source."""

    create_command: ClassVar[str] = "python -m pipeline preprocess"

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

    create_command: ClassVar[str] = "python -m pipeline train --dataset DATASET"

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

    create_command: ClassVar[str] = "python -m pipeline export --run RUN"

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
    create_command: ClassVar[str] = "python -m pipeline evaluate --model MODEL"

    kind: Literal["evaluation"] = "evaluation"
    model: str
    dataset: str
    metrics: dict[str, dict[str, Any]]

    @property
    def ref(self) -> str:
        return self.model


class ScoresManifest(Manifest):
    """`--output` of scoring: which model scored which input; rows in = scored + rejected."""

    create_command: ClassVar[str] = "python -m pipeline score"

    kind: Literal["scores"] = "scores"
    model: str
    image: ImageSpec
    probabilities: bool
    columns: tuple[str, ...]
    rows_per_shard: int
    inputs: tuple[FileEntry, ...]
    rows: int
    rejected: int = 0
