"""What stages and serving agree on: the tensors of a model, the images of a data set, the errors.

Knows nothing of files, Ray, torch or HTTP.

    UserError               what a user can cause and mend
    ├── SettingError        a setting, or settings that do not go together
    ├── DataError           input that breaks its format
    ├── SourceUnreachable   no mirror of a data set answered
    ├── StorageError        storage that could not be read or written
    ├── ArtifactMissing     an artifact that is not there, or not finished
    ├── ArtifactDamaged     an artifact that differs from its manifest
    ├── ModelRejected       a model that breaks the contract below, or the parity gate
    ├── ResourcesMissing    a cluster or machine that lacks what was asked for
    └── TrainingFailed      training that diverged or lost its workers too often
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

INPUT = "image"
"""Name of the model's input: uint8 (N, height, width), raw pixels, N free."""

PROBABILITIES = "probabilities"
"""Name of the model's output: float32 (N, classes), rows sum to 1."""

PREDICTION = "prediction"
"""Name of the model's output: int64 (N,), the index of the most probable class."""

PIXEL_MAX = 255
"""Raw pixels are divided by this inside the model, and nowhere else."""


class UserError(Exception):
    """Base of all errors that a user can mend; the message alone is shown."""


class SettingError(UserError):
    pass


class DataError(UserError):
    pass


class SourceUnreachable(UserError):
    pass


class StorageError(UserError):
    pass


class ArtifactMissing(UserError):
    pass


class ArtifactDamaged(UserError):
    pass


class ModelRejected(UserError):
    pass


class ResourcesMissing(UserError):
    pass


class TrainingFailed(UserError):
    pass


@dataclass(frozen=True)
class ImageSpec:
    """Size of the images of a data set, and the names of their classes, by label."""

    height: int
    width: int
    class_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def num_pixels(self) -> int:
        return self.height * self.width

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Predictions:
    """probabilities: float32 (N, classes), rows sum to 1; prediction: int64 (N,), their argmax."""

    probabilities: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    prediction: np.ndarray[tuple[int], np.dtype[np.int64]]


def join(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of all rows of the parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    return Predictions(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.prediction for part in parts]),
    )
