"""The V1 protocol of TensorFlow Serving and KServe: instances -> arrays, predictions -> JSON."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.artifacts.manifests import ModelManifest
from pipeline.contract import INPUT, Predictions
from serving.errors import PayloadTooLarge, RequestInvalid
from serving.model.image_input import read_image
from serving.protocol.types import Json
from serving.protocol.v2_request import parse_json, pixels_from_json


def parse_instances(body: bytes, model: ModelManifest, *, max_rows: int) -> UInt8Array:
    """Images uint8 (N, height, width) of a V1 request.

    An instance is the pixels of an image, nested or flat, {"image": pixels}, or {"b64": a PNG, a
    JPEG or raw pixels in base64}.
    """
    request = parse_json(body)
    instances = request.get("instances") if isinstance(request, dict) else None
    if not isinstance(instances, list) or not instances:
        raise RequestInvalid('Not a V1 request. Send {"instances": [image, ...]}, one or more.')
    if len(instances) > max_rows:
        raise PayloadTooLarge(
            f"The request has {len(instances)} instances, but one may have {max_rows}. "
            "Send them in several requests."
        )
    return np.stack([_instance_image(instance, model) for instance in instances])


def predictions_json(predictions: Predictions) -> Json:
    """The answer: of each instance the probabilities and the prediction."""
    rows = zip(predictions.probabilities.tolist(), predictions.prediction.tolist(), strict=True)
    return {"predictions": [{"probabilities": p, "prediction": k} for p, k in rows]}


def _instance_image(instance: Any, model: ModelManifest) -> UInt8Array:
    if isinstance(instance, dict):
        if isinstance(encoded := instance.get("b64"), str) and len(instance) == 1:
            try:
                return read_image(base64.b64decode(encoded, validate=True), model.image).pixels
            except (binascii.Error, ValueError):
                raise RequestInvalid("An instance's b64 is not base64. Encode it again.") from None
        if list(instance) != [INPUT]:
            raise RequestInvalid(f'An instance has other fields than "{INPUT}" or "b64".')
        instance = instance[INPUT]
    nested = isinstance(instance, list) and instance and isinstance(instance[0], list)
    image: UInt8Array
    (image,) = pixels_from_json([instance] if nested else instance, [1, *model.image.shape])
    return image
