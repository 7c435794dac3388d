"""What the stages and the server agree on: the tensors of a model and the images of a data set.

Imports numpy alone: no files, no Ray, no torch, no HTTP.
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


def concat_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of all rows of the parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    return Predictions(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.prediction for part in parts]),
    )
