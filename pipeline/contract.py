"""The contract between the stages and the server: a model's tensors and a dataset's images.

Imports only numpy: no files, Ray, torch or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

VERSION = "0.2.0"
"""Version of this project, from which pyproject.toml takes it."""

INPUT = "image"
"""Name of the model's input: raw pixels, uint8 (N, height, width), for any N."""

PROBABILITIES = "probabilities"
"""Name of the model's output: float32 (N, classes), each row sums to 1."""

PREDICTION = "prediction"
"""Name of the model's output: int64 (N,), the index of the most probable class."""

PIXEL_MAX = 255
"""The largest pixel value. The model divides raw pixels by it; nothing else scales them."""

MAX_PARITY_DIFFERENCE = 1e-5
"""Allowed difference of a probability between torch and a model whose weights were not rounded."""


@dataclass(frozen=True)
class Preparation:
    """How images that people bring become the pixels of a dataset, in every stage and the server.

    The defaults are those of manifests that do not say: such models were served this way.
    """

    fit: Literal["none", "stretch", "pad", "mass"] = "mass"
    """How an image of another size is fitted: `none` refuses it, `stretch` scales both sides, `pad`
    keeps the aspect ratio and fills the rest, `mass` centres its ink by its mass as MNIST's was."""
    invert: Literal["never", "always", "auto"] = "auto"
    """Whether images are inverted; `auto` inverts image files whose border is light."""
    grey: bool = True
    """Whether colour becomes grey (0.299 R + 0.587 G + 0.114 B); otherwise it is refused."""


AS_IS = Preparation(fit="none", invert="never", grey=False)
"""Pixels are taken as they are; images of another size or in colour are refused."""


@dataclass(frozen=True)
class ImageSpec:
    """The size of a dataset's images in pixels, the names of their classes, and their preparation.

    A label is an index into `class_names`.
    """

    height: int
    width: int
    class_names: tuple[str, ...]
    preparation: Preparation = Preparation()

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
    """Predictions for N images: the probability of each class, and the most probable class.

    probabilities: float32 (N, classes), each row sums to 1; prediction: int64 (N,).
    """

    probabilities: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    prediction: np.ndarray[tuple[int], np.dtype[np.int64]]


def concat_predictions(batches: Sequence[Predictions]) -> Predictions:
    """Return the predictions of all batches as one, in order."""
    if len(batches) == 1:
        return batches[0]
    return Predictions(
        np.concatenate([batch.probabilities for batch in batches]),
        np.concatenate([batch.prediction for batch in batches]),
    )
