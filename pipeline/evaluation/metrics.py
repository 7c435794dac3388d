"""Predictions against labels -> accuracy, confusion, calibration, and the worst mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.data.shards import LabeledImages
from pipeline.models.predictor import Predictor

BATCH_ROWS = 4096

NUM_BINS = 15

NUM_MISTAKES = 24


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: id in the dataset, the image, its label, and how sure the model was."""

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
    """Metrics of a predictor over labelled rows, each counted once, one shard in memory at a time.

    Calibration error is ECE with 15 bins of equal width (Guo et al. 2017, eq. 3); loss is the mean
    of -log of the probability of the true class.
    """
    classes = predictor.model.image.num_classes
    confusion = np.zeros((classes, classes), np.int64)
    bins = np.zeros((NUM_BINS, 3))
    loss = 0.0
    mistakes: list[Mistake] = []
    for shard in split:
        for start in range(0, len(shard.ids), BATCH_ROWS):
            rows = slice(start, start + BATCH_ROWS)
            images, labels = shard.images[rows], shard.labels[rows].astype(np.int64)
            found = predictor.predict(images)
            np.add.at(confusion, (labels, found.prediction), 1)
            of_label = np.take_along_axis(found.probabilities, labels[:, None], axis=1)
            loss -= float(np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).sum())
            confidence = found.probabilities.max(axis=1)
            right = found.prediction == labels
            which = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
            values = np.stack([np.ones_like(confidence), confidence, right], axis=1)
            np.add.at(bins, which, values)
            mistakes += [
                Mistake(
                    int(shard.ids[start + i]),
                    images[i],
                    int(labels[i]),
                    int(found.prediction[i]),
                    float(confidence[i]),
                )
                for i in np.flatnonzero(~right)
            ]
            mistakes = sorted(mistakes, key=lambda m: (-m.confidence, m.id))[:NUM_MISTAKES]
    return Evaluation(_metrics(confusion, bins, loss), mistakes)


def _metrics(confusion: Any, bins: Any, loss: float) -> dict[str, Any]:
    count = int(confusion.sum())
    right = confusion.diagonal()
    labelled, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
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
