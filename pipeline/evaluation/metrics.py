"""Compare predictions with labels: accuracy, confusion, calibration and the worst mistakes."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.data.shards import LabeledImages
from pipeline.models.predictor import Predictor, batches

NUM_BINS = 15
"""Bins of the calibration error, equally wide in confidence."""

NUM_MISTAKES = 24
"""Mistakes that the report shows."""


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction. `confidence` is the probability of the predicted class."""

    id: int
    image: UInt8Array
    label: int
    prediction: int
    confidence: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics over a split as JSON values, and its most confident mistakes, the worst first."""

    metrics: dict[str, Any]
    mistakes: list[Mistake]


def evaluate_predictor(predictor: Predictor, split: Iterable[LabeledImages]) -> Evaluation:
    """Evaluate a predictor on labelled rows, with one shard in memory at a time.

    The calibration error is ECE with NUM_BINS bins (Guo et al. 2017, eq. 3). The loss is the mean
    of -log of the probability of the true class.
    """
    classes = predictor.model.image.num_classes
    confusion = np.zeros((classes, classes), np.int64)
    # By bin: number of rows, sum of their confidences, number of correct predictions.
    bins = np.zeros((NUM_BINS, 3))
    loss = 0.0
    mistakes: list[Mistake] = []
    for shard in split:
        stop = 0
        for images in batches(shard.images):
            start, stop = stop, stop + len(images)
            ids, labels = shard.ids[start:stop], shard.labels[start:stop].astype(np.int64)
            predictions = predictor.predict(images)
            probabilities, prediction = predictions.probabilities, predictions.prediction
            np.add.at(confusion, (labels, prediction), 1)
            true_class = np.take_along_axis(probabilities, labels[:, None], axis=1)
            # A probability of 0 would make the loss infinite.
            loss -= float(np.log(np.maximum(true_class, np.finfo(np.float32).tiny)).sum())
            confidence = probabilities.max(axis=1)
            correct = prediction == labels
            bin_index = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
            values = np.stack([np.ones_like(confidence), confidence, correct], axis=1)
            np.add.at(bins, bin_index, values)
            wrong = np.flatnonzero(~correct)
            worst = wrong[np.lexsort((ids[wrong], -confidence[wrong]))][:NUM_MISTAKES]
            mistakes += [
                Mistake(
                    int(ids[i]),
                    # A view would keep its shard in memory.
                    images[i].copy(),
                    int(labels[i]),
                    int(prediction[i]),
                    float(confidence[i]),
                )
                for i in worst
            ]
            mistakes = heapq.nsmallest(NUM_MISTAKES, mistakes, lambda m: (-m.confidence, m.id))
    return Evaluation(_metrics(confusion, bins, loss), mistakes)


def _metrics(confusion: Any, bins: Any, loss: float) -> dict[str, Any]:
    """Return the metrics as JSON values; `loss` is summed over all rows."""
    count = int(confusion.sum())
    right = confusion.diagonal()
    labelled, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    # A class without rows or predictions gets 0, not a division by 0.
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(labelled, 1)
    f1 = 2 * right / np.maximum(labelled + predicted, 1)
    return {
        "count": count,
        "accuracy": float(right.sum() / count),
        "errors": count - int(right.sum()),
        "loss": loss / count,
        "calibration_error": float(np.abs(bins[:, 1] - bins[:, 2]).sum() / count),
        "macro_f1": float(f1.mean()),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "support": labelled.tolist(),
        "confusion": confusion.tolist(),
        "calibration_bins": bins.tolist(),
    }
