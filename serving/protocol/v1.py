"""The V1 protocol of TensorFlow Serving and KServe: instances to arrays, predictions to JSON."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.artifacts.manifests import ModelManifest
from pipeline.contract import INPUT, Predictions
from pipeline.errors import DataError
from pipeline.images.prepare import prepare_arrays
from serving.errors import ImageInvalid, PayloadTooLarge, RequestInvalid
from serving.protocol.image_input import read_images
from serving.protocol.types import Json
from serving.protocol.v2_request import parse_json, pixels_from_json


def parse_instances(
    body: bytes, model: ModelManifest, *, max_rows: int, max_pixels: int
) -> UInt8Array:
    """Return the images of a V1 request, uint8 (N, height, width).

    An instance is the pixels of an image, nested or flat, {"image": pixels}, or {"b64": ...} with a
    PNG, a JPEG or raw pixels in base64. Each is prepared as the model's dataset was. Raise
    RequestInvalid if the body is not such a request, PayloadTooLarge if it has more than `max_rows`
    instances, and the errors of `read_images`.
    """
    request = parse_json(body)
    instances = request.get("instances") if isinstance(request, dict) else None
    if not isinstance(instances, list) or not instances:
        raise RequestInvalid('Not a V1 request. Send {"instances": [image, ...]}, one or more.')
    if len(instances) > max_rows:
        raise PayloadTooLarge(
            f"The request has {len(instances)} instances, but at most {max_rows} are allowed. "
            "Send them in several requests."
        )
    encoded = [_decode_base64(instance["b64"]) for instance in filter(_is_encoded, instances)]
    files = iter(read_images(encoded, model.image, max_pixels))
    return np.stack(
        [
            next(files).pixels if _is_encoded(instance) else _instance_image(instance, model)
            for instance in instances
        ]
    )


def predictions_json(predictions: Predictions) -> Json:
    """Return the reply: the probabilities and the prediction of each instance."""
    rows = zip(predictions.probabilities.tolist(), predictions.prediction.tolist(), strict=True)
    return {
        "predictions": [
            {"probabilities": probabilities, "prediction": prediction}
            for probabilities, prediction in rows
        ]
    }


def _is_encoded(instance: Any) -> bool:
    """Return whether an instance is {"b64": text}."""
    return (
        isinstance(instance, dict) and len(instance) == 1 and isinstance(instance.get("b64"), str)
    )


def _instance_image(instance: Any, model: ModelManifest) -> UInt8Array:
    if isinstance(instance, dict):
        if list(instance) != [INPUT]:
            raise RequestInvalid(
                f'An instance has fields other than "{INPUT}" or "b64". Send one of these two.'
            )
        instance = instance[INPUT]
    preparation, shape = model.image.preparation, model.image.shape
    nested = isinstance(instance, list) and instance and isinstance(instance[0], list)
    size = shape
    if nested and preparation.fit != "none":
        size = len(instance), len(instance[0])
    pixels = pixels_from_json([instance] if nested else instance, [1, *size])
    try:
        image: UInt8Array = prepare_arrays(pixels, preparation, shape)[0]
    except DataError as error:
        raise ImageInvalid(str(error)) from None
    return image


def _decode_base64(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise RequestInvalid("An instance's b64 is not base64. Encode it again.") from None
