"""The manifests: what an artifact is, what it was built from, and the digest of each file.

Manifests hold no absolute paths and, except for the speed of training, no times: the same inputs
give the same bytes. They may come from others, so names and paths are checked: a path never leads
out of the artifact's folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.contract import MAX_PARITY_DIFFERENCE, ImageSpec
from pipeline.errors import ArtifactDamaged

MAJOR, MINOR = 1, 2
"""Version of the artifacts' format.

Raise MINOR if fields are added that an older reader may ignore, and MAJOR for any other change.
MAJOR is part of every version, so another one reads no old files.
"""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"

VERSION_DIGITS = r"[0-9a-f]{12}"

_COMPONENT = r"(?:[^./\\\x00]|\.[^./\\\x00]|\.\.[^/\\\x00])[^/\\\x00]*"

PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
"""Relative, without components that are empty, `.` or `..`, and without backslashes."""

MANIFEST, EVALUATION = "manifest.json", "evaluation.json"
"""The names of manifests."""

Name = Annotated[str, Field(pattern=rf"^{NAME}$")]

Version = Annotated[str, Field(pattern=rf"^{VERSION_DIGITS}$")]

Ref = Annotated[str, Field(pattern=rf"^{NAME}/{VERSION_DIGITS}$")]
"""NAME/VERSION of a dataset or a model."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of an artifact, or of its input. There may be millions, so it has slots."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    path: str
    """Path relative to the manifest or the input."""
    bytes: Annotated[int, Field(ge=0)]
    """Size in bytes."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the content, in hex; of an input over 1 GiB, that of the digests of its parts of
    1 GiB, unless it is compressed or CSV."""
    rows: Annotated[int, Field(ge=0)] | None = None
    """Number of rows, if the file has rows."""


def check_path(entry: FileEntry) -> FileEntry:
    """Return the entry.

    Raise ValueError if its path may lead out of the artifact's folder, or is that of a manifest.
    """
    if not PATH.fullmatch(entry.path):
        raise ValueError(f"the path {entry.path!r} may lead out of the artifact's folder")
    if entry.path in (MANIFEST, EVALUATION):
        raise ValueError(f"{entry.path!r} is a manifest, and not a file of the artifact")
    return entry


ArtifactFile = Annotated[FileEntry, AfterValidator(check_path)]
"""The entry of a file inside an artifact's folder; that of an input may have any name."""


class Manifest(BaseModel):
    """The fields of every manifest.

    In its file they follow `format`, MAJOR.MINOR, and `written_by`, the version of this project.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file_name: ClassVar[str] = MANIFEST
    create_command: ClassVar[str]
    fields_of_entries: ClassVar[tuple[str, ...]] = ("files",)

    caveat: str = ""
    """A warning that belongs beside every figure taken from the artifact."""
    files: tuple[ArtifactFile, ...] = ()
    """The files of the artifact."""
    tables: dict[str, ArtifactFile] = {}
    """By field, the Parquet table of its entries, if there are too many for this file."""

    def file(self, path: str) -> FileEntry:
        """Return the entry of a file that the manifest lists."""
        return next(entry for entry in self.files if entry.path == path)


class DatasetManifest(Manifest):
    """`datasets/<name>/<version>/`: Parquet shards of the splits `train`, `val` and `test`."""

    create_command: ClassVar[str] = "python -m pipeline preprocess"

    kind: Literal["dataset"] = "dataset"
    """Kind of artifact."""
    name: Name
    """Name of the dataset."""
    version: Version
    """Digest of the source and the settings, 12 hex digits."""
    image: ImageSpec
    """Height, width and class names of the images."""
    rows: dict[str, int]
    """Number of rows by split."""
    source: dict[str, str]
    """SHA-256 of each source file, by its role or path."""

    @property
    def ref(self) -> str:
        return f"{self.name}/{self.version}"

    def shards(self, split: str) -> list[FileEntry]:
        """Return the shards of a split, in order."""
        return [entry for entry in self.files if entry.path.startswith(f"{split}/")]


class RunManifest(Manifest):
    """`runs/<run>/`: a finished training run."""

    create_command: ClassVar[str] = "python -m pipeline train --dataset DATASET"

    kind: Literal["run"] = "run"
    """Kind of artifact."""
    run: Name
    """Recipe and digest of what decides the result: dataset, settings, device, code format."""
    dataset: Ref
    """The dataset, NAME/VERSION."""
    image: ImageSpec
    """Height, width and class names of the images."""
    training: dict[str, Any]
    """The settings of training."""
    device: str
    """`cpu` or `cuda`."""
    metrics: tuple[dict[str, float], ...]
    """One entry per epoch: loss, accuracy, validation loss and accuracy, images/s, waiting time,
    and the workers that computed it: their number, and the CPUs of each."""
    checkpoint: Annotated[str, Field(pattern=rf"^{PATH.pattern}$")]
    """Path of the checkpoint that holds the final weights."""
    history: tuple[dict[str, Any], ...] = ()
    """The layouts of workers, each with the epoch and step from which it trained: they decide how
    sums are rounded. Empty in old manifests."""

    @property
    def ref(self) -> str:
        return self.run


ONNX_FILE = "model.onnx"
"""The name of a model's ONNX file in its folder."""


class TensorSpec(BaseModel):
    """An input or output tensor of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the tensor."""
    dtype: str
    """Its dtype, as numpy names it."""
    shape: tuple[int, ...]
    """Its shape; -1 is the free batch axis."""


class ModelManifest(Manifest):
    """`models/<name>/<version>/`: one self-contained ONNX file, and what serving needs to know."""

    create_command: ClassVar[str] = "python -m pipeline export --run RUN"

    kind: Literal["model"] = "model"
    """Kind of artifact."""
    name: Name
    """Name of the model, which is that of its dataset."""
    version: Version
    """Digest of the run, its weights, the dataset and the exporter, 12 hex digits."""
    run: Name
    """The run that trained it."""
    dataset: Ref
    """The dataset that it was trained on, NAME/VERSION."""
    image: ImageSpec
    """Height, width and class names of the images."""
    inputs: tuple[TensorSpec, ...]
    """The input tensors."""
    outputs: tuple[TensorSpec, ...]
    """The output tensors."""
    parity_max_difference: float
    """Largest difference of a probability between onnxruntime and torch on `test`."""
    parity_rows: int | None = None
    """Number of rows of `test` on which they were compared; null in old manifests: all."""
    parity_changed: int | None = None
    """Number of these rows whose predicted class differs; null in old manifests: not counted."""
    weights: Literal["float32", "uint8"] = Field(
        default_factory=lambda fields: (
            "float32" if fields["parity_max_difference"] <= MAX_PARITY_DIFFERENCE else "uint8"
        )
    )
    """How the first layer's weights are stored; the others are float32. Old manifests do not say,
    but only rounded weights differ by more than 1e-5."""
    training: dict[str, Any]
    """The settings of training."""

    @property
    def ref(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def onnx(self) -> FileEntry:
        """Return the entry of the ONNX file. Raise ArtifactDamaged if the manifest lists none."""
        for entry in self.files:
            if entry.path.endswith(".onnx"):
                return entry
        raise ArtifactDamaged(
            f"The manifest of model {self.ref} lists no ONNX file. Export it again with --force."
        )


class EvaluationManifest(Manifest):
    """`evaluation.json` beside a model version's manifest: its metrics and the report's files."""

    file_name: ClassVar[str] = EVALUATION
    create_command: ClassVar[str] = "python -m pipeline evaluate --model MODEL"

    kind: Literal["evaluation"] = "evaluation"
    """Kind of artifact."""
    model: Ref
    """The model version, NAME/VERSION."""
    version: str = ""
    """Digest of the model's file, the dataset and the report's format; empty in old manifests."""
    dataset: Ref
    """The dataset, NAME/VERSION."""
    metrics: dict[str, dict[str, Any]]
    """Metrics by split: accuracy, loss, calibration error, confusion matrix and others."""

    @property
    def ref(self) -> str:
        return self.model

    @property
    def report(self) -> FileEntry:
        """Return the entry of the report."""
        return next(entry for entry in self.files if entry.path.endswith(".html"))


class ScoresManifest(Manifest):
    """`--output` of `score`: Parquet shards of predictions; rows in = rows scored + rejected."""

    create_command: ClassVar[str] = "python -m pipeline score"
    fields_of_entries: ClassVar[tuple[str, ...]] = ("files", "inputs")

    kind: Literal["scores"] = "scores"
    """Kind of artifact."""
    model: Ref
    """The model version, NAME/VERSION."""
    version: str = ""
    """Digest of the input, the model, the settings and the code's format; empty in old
    manifests."""
    image: ImageSpec
    """Height, width and class names of the images."""
    probabilities: bool
    """Whether the shards hold the probability of every class."""
    columns: tuple[str, ...]
    """Columns of the input that the shards repeat."""
    rows_per_shard: int
    """Rows per shard."""
    inputs: tuple[FileEntry, ...]
    """The files that were scored."""
    rows: int
    """Number of rows of the input."""
    rejected: int = 0
    """Number of rows that could not be scored."""
