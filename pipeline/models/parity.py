"""The checks before a model is published: it must predict what torch predicts.

Each check compares onnxruntime's probabilities and predictions with torch's, for the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from pipeline.models.mlp import Classifier

PARITY_BATCH_SIZES = (1, 2, 61, 4096)

MAX_ACCURACY_DROP = 0.0005
"""The most by which rounded weights may lower accuracy on `val`."""


class Tolerance(NamedTuple):
    """The largest differences allowed between onnxruntime and torch."""

    probability: float
    """Difference of any one probability."""

    changed_share: float
    """Share of images whose predicted class differs, 0 to 1."""


FLOAT_TOLERANCE = Tolerance(probability=MAX_PARITY_DIFFERENCE, changed_share=0.0)

UINT8_TOLERANCE = Tolerance(probability=0.1, changed_share=0.002)


def check_parity(
    session: ort.InferenceSession,
    classifier: Classifier,
    images: UInt8Array,
    tolerance: Tolerance = FLOAT_TOLERANCE,
) -> float:
    """Return the largest difference of a probability between onnxruntime and torch.

    Both predict all images, in batches of several sizes. Raise ModelRejected if this difference,
    or the share of changed predictions, exceeds the tolerance.
    """
    worst = 0.0
    allowed = int(tolerance.changed_share * len(images))
    for size in PARITY_BATCH_SIZES:
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        actual = concat_predictions([predictor.run_session(session, batch) for batch in batches])
        expected = _predict_with_torch(classifier, batches)
        difference = float(np.abs(actual.probabilities - expected.probabilities).max())
        changed = int((actual.prediction != expected.prediction).sum())
        worst = max(difference, worst)
        # Written as `not <=`, because a comparison with NaN is false: NaN must not pass.
        if not worst <= tolerance.probability or changed > allowed:
            raise ModelRejected(
                f"In batches of {size}, onnxruntime changes {changed} predictions of torch and a "
                f"probability by {worst:.1e} (allowed: {allowed} and "
                f"{tolerance.probability:.0e}). The model was not published."
            )
    return worst


def check_accuracy(
    session: ort.InferenceSession, classifier: Classifier, val: LabeledImages
) -> None:
    """Raise ModelRejected if accuracy on `val` is lower than torch's by over MAX_ACCURACY_DROP."""
    expected = _predict_with_torch(classifier, [val.images]).prediction
    actual = predictor.run_session(session, val.images).prediction
    lost = int((expected == val.labels).sum() - (actual == val.labels).sum())
    allowed = MAX_ACCURACY_DROP * len(val.labels)
    if lost > allowed:
        raise ModelRejected(
            f"With weights as uint8, {lost} fewer of the {len(val.labels)} images of val are "
            f"predicted correctly (allowed: {allowed:.0f}). Export without --uint8."
        )


def _predict_with_torch(classifier: Classifier, batches: Sequence[UInt8Array]) -> Predictions:
    """Return torch's predictions for all batches, end to end."""
    with torch.inference_mode():
        outputs = [classifier(torch.from_numpy(batch)) for batch in batches]
    return Predictions(
        torch.cat([probabilities for probabilities, _ in outputs]).numpy(),
        torch.cat([prediction for _, prediction in outputs]).numpy(),
    )


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
