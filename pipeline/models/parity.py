"""The parity gate: an exported model must predict what torch predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch

from pipeline.arrays import UInt8Array
from pipeline.artifacts.manifests import TensorSpec
from pipeline.data.shards import LabeledImages
from pipeline.errors import ModelRejected
from pipeline.models import predictor
from pipeline.models.mlp import Classifier

PARITY_BATCH_SIZES = (1, 2, 61, 4096)

MAX_ACCURACY_DROP = 0.0005
"""Of accuracy on `val`, by rounded weights."""


class Tolerance(NamedTuple):
    """What may differ from torch: a probability by so much, and this share of predictions."""

    difference: float
    changed: float


FLOAT_TOLERANCE, UINT8_TOLERANCE = Tolerance(1e-5, 0.0), Tolerance(0.1, 0.002)


def check_parity(
    session: ort.InferenceSession,
    classifier: Classifier,
    images: UInt8Array,
    bound: Tolerance = FLOAT_TOLERANCE,
) -> float:
    """The largest difference of a probability between onnxruntime and torch, over all images.

    Both predict them in batches of several sizes. Raises ModelRejected where that, or the share of
    predictions that change, is over its bound.
    """
    worst = 0.0
    for size in PARITY_BATCH_SIZES:
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        found = [predictor.run_session(session, batch) for batch in batches]
        probabilities, prediction = _predict_with_torch(classifier, batches)
        difference = np.concatenate([batch.probabilities for batch in found]) - probabilities
        changed = int((np.concatenate([batch.prediction for batch in found]) != prediction).sum())
        worst = max(float(np.abs(difference).max()), worst)
        allowed = int(bound.changed * len(images))
        # A comparison with NaN is false, so NaN does not pass.
        if not worst <= bound.difference or changed > allowed:
            raise ModelRejected(
                f"In batches of {size}, onnxruntime changes {changed} predictions of torch and a "
                f"probability by {worst:.1e} (allowed: {allowed} and {bound.difference:.0e}). "
                "The model was not published."
            )
    return worst


def check_accuracy(
    session: ort.InferenceSession, classifier: Classifier, val: LabeledImages
) -> None:
    """ModelRejected where onnxruntime is right less often than torch, by more than MAX_LOSS."""
    _, expected = _predict_with_torch(classifier, [val.images])
    found = predictor.run_session(session, val.images).prediction
    lost = int((expected == val.labels).sum() - (found == val.labels).sum())
    if lost > (allowed := MAX_ACCURACY_DROP * len(val.labels)):
        raise ModelRejected(
            f"Of {len(val.labels)} images of val, weights as uint8 lose {lost} that were right "
            f"(allowed: {allowed:.0f}). Export without --uint8."
        )


def _predict_with_torch(classifier: Classifier, batches: Sequence[UInt8Array]) -> tuple[Any, Any]:
    """Probabilities and predictions of all batches."""
    with torch.inference_mode():
        outputs = [classifier(torch.from_numpy(batch)) for batch in batches]
    probabilities, prediction = (torch.cat(part).numpy() for part in zip(*outputs, strict=True))
    return probabilities, prediction


def check_contract(
    session: ort.InferenceSession, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """ModelRejected where the tensors of an exported model are not those of the contract."""
    found = (
        predictor.session_tensors(session, "inputs"),
        predictor.session_tensors(session, "outputs"),
    )
    if found != (inputs, outputs):
        raise ModelRejected(f"The exported model has the tensors {found}, not {(inputs, outputs)}.")
