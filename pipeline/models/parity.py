"""The checks before a model is published: it must predict what torch predicts.

Each check compares onnxruntime's probabilities and predictions with torch's, for the same images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch

from pipeline.arrays import UInt8Array
from pipeline.artifacts.manifests import TensorSpec
from pipeline.contract import MAX_PARITY_DIFFERENCE, Predictions, concat_predictions
from pipeline.data.shards import LabeledImages
from pipeline.errors import ModelRejected
from pipeline.models import predictor
from pipeline.models.classifier import Classifier

PARITY_ROWS = 10_000
"""Rows of a split that are compared; of a smaller split, all."""

PARITY_BATCH_SIZES = (1, 2, 61, predictor.MAX_BATCH_ROWS)

MAX_BATCHES = 500
"""The most batches of one size. Small batches are slow, so they take only the first of the rows."""

MAX_ACCURACY_DROP = 0.0005
"""The most by which rounded weights may lower accuracy on `val`."""


class Tolerance(NamedTuple):
    """The largest differences allowed between onnxruntime and torch."""

    probability: float
    """Difference of any one probability."""

    changed_share: float
    """Share of images whose predicted class differs, 0 to 1, near ties aside."""


FLOAT_TOLERANCE = Tolerance(probability=MAX_PARITY_DIFFERENCE, changed_share=0.0)

UINT8_TOLERANCE = Tolerance(probability=0.1, changed_share=0.002)


class Parity(NamedTuple):
    """How far onnxruntime and torch differ."""

    rows: int
    """Number of images that both predicted."""
    max_difference: float
    """Largest difference of a probability."""
    changed: int
    """Number of images whose predicted class differs in a batch of any size."""


def check_parity(
    session: ort.InferenceSession,
    classifier: Classifier,
    split: Iterable[LabeledImages],
    tolerance: Tolerance = FLOAT_TOLERANCE,
) -> Parity:
    """Return how far onnxruntime, in batches of several sizes, differs from torch.

    A changed prediction is a near tie if torch's two largest probabilities differ by at most
    MAX_PARITY_DIFFERENCE. Raise ModelRejected if a probability, or the share of changed
    predictions, near ties aside, differs by more than the tolerance.
    """
    rows = changed = near_ties = 0
    worst = np.float32(0)
    rows_left = {size: size * MAX_BATCHES for size in PARITY_BATCH_SIZES}
    for shard in split:
        expected = _predict_with_torch(classifier, shard.images)
        differs = np.zeros(len(shard.images), bool)
        for size in PARITY_BATCH_SIZES:
            images = shard.images[: rows_left[size]]
            rows_left[size] -= len(images)
            if len(images) == 0:
                continue
            actual = _predict(session, images, size)
            difference = np.abs(actual.probabilities - expected.probabilities[: len(images)]).max()
            # np.maximum keeps NaN, which must not pass.
            worst = np.maximum(worst, difference)
            differs[: len(images)] |= actual.prediction != expected.prediction[: len(images)]
        best_two = np.sort(expected.probabilities[differs], axis=1)[:, -2:]
        near_ties += int((np.ptp(best_two, axis=1) <= MAX_PARITY_DIFFERENCE).sum())
        changed += int(differs.sum())
        rows += len(differs)
    allowed = int(tolerance.changed_share * rows)
    # Written as `not <=`, because a comparison with NaN is false.
    if not worst <= tolerance.probability or changed - near_ties > allowed:
        raise ModelRejected(
            f"On {rows} images, onnxruntime changes {changed - near_ties} predictions of torch "
            f"and a probability by {worst:.1e} (allowed: {allowed} and "
            f"{tolerance.probability:.0e}). The model was not published."
        )
    return Parity(rows, float(worst), changed)


def check_accuracy(
    session: ort.InferenceSession, classifier: Classifier, val: Iterable[LabeledImages]
) -> None:
    """Raise ModelRejected if accuracy on `val` is lower than torch's by over MAX_ACCURACY_DROP."""
    rows = lost = 0
    for shard in val:
        expected = _predict_with_torch(classifier, shard.images).prediction == shard.labels
        actual = _predict(session, shard.images).prediction == shard.labels
        lost += int(expected.sum() - actual.sum())
        rows += len(shard.labels)
    allowed = MAX_ACCURACY_DROP * rows
    if lost > allowed:
        raise ModelRejected(
            f"With weights as uint8, {lost} fewer of {rows} images of val are predicted correctly "
            f"(allowed: {allowed:.0f}). Export without --uint8."
        )


def _predict(
    session: ort.InferenceSession, images: UInt8Array, batch_rows: int = predictor.MAX_BATCH_ROWS
) -> Predictions:
    """Return onnxruntime's predictions."""
    return concat_predictions(
        [predictor.run_session(session, batch) for batch in predictor.batches(images, batch_rows)]
    )


def _predict_with_torch(classifier: Classifier, images: UInt8Array) -> Predictions:
    """Return torch's predictions."""
    with torch.inference_mode():
        outputs = [classifier(torch.from_numpy(batch)) for batch in predictor.batches(images)]
    return concat_predictions([Predictions(p.numpy(), c.numpy()) for p, c in outputs])


def check_contract(
    session: ort.InferenceSession, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Raise ModelRejected if an exported model does not have these inputs and outputs."""
    actual = (
        predictor.session_tensors(session, "inputs"),
        predictor.session_tensors(session, "outputs"),
    )
    if actual != (inputs, outputs):
        raise ModelRejected(
            f"The exported model has the tensors {actual}, not {(inputs, outputs)}."
        )
