"""Open Inference Protocol (V2), JSON: metadata, infer requests -> arrays, predictions -> responses.

Knows nothing of HTTP. Only the model's manifest says what its tensors are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json, to_json

from pipeline.contract import INPUT, PIXEL_MAX
from pipeline.manifest import ModelManifest, TensorSpec
from pipeline.predictor import Predictions
from serving.errors import PayloadTooLarge, RequestInvalid, short

SERVER = {"name": "ray-onnx-pipeline", "version": "0.1.0", "extensions": []}
"""Metadata of the server, as GET /v2 answers it."""

PLATFORM = "onnx_onnxv1"
DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}
"""The protocol's names of numpy's dtypes."""

Images: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
"""Raw pixels, uint8 (N, height, width)."""

Json: TypeAlias = dict[str, Any]
Parameters: TypeAlias = dict[str, bool | int | float | str]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Input(_Body):
    name: str
    shape: list[int]
    datatype: str
    data: Any
    parameters: Parameters = {}


class _Output(_Body):
    name: str
    parameters: Parameters = {}


class _Request(_Body):
    inputs: list[_Input]
    id: str | None = None
    parameters: Parameters = {}
    outputs: list[_Output] | None = None


@dataclass(frozen=True)
class InferRequest:
    """A checked request: images uint8 (N, height, width), N >= 1; names of the outputs to send."""

    images: Images
    outputs: tuple[str, ...]
    id: str | None


def model_metadata(model: ModelManifest) -> Json:
    """What GET /v2/models/NAME answers."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": PLATFORM,
        "inputs": [_tensor_metadata(spec) for spec in model.inputs],
        "outputs": [_tensor_metadata(spec) for spec in model.outputs],
    }


def parse_request(body: bytes, model: ModelManifest, *, max_rows: int) -> InferRequest:
    """An infer request in JSON; RequestInvalid or PayloadTooLarge where it is not one to run."""
    request = _parse_json(body)
    if [given.name for given in request.inputs] != [INPUT]:
        names = ", ".join(short(given.name) for given in request.inputs[:3]) or "none"
        raise RequestInvalid(f"Inputs are {names}, but the model takes one: send {INPUT!r} alone.")
    image = request.inputs[0]
    if image.datatype != DATATYPES["uint8"]:
        raise RequestInvalid(
            f"Datatype of {INPUT!r} is {short(image.datatype)}, but the model takes raw pixels. "
            f"Send {DATATYPES['uint8']}, 0 to {PIXEL_MAX}."
        )
    _check_shape(image.shape, model.image.shape, max_rows=max_rows)
    return InferRequest(
        images=_pixels(image.data, image.shape),
        outputs=_wanted(request.outputs, model.outputs),
        id=request.id,
    )


def build_response(model: ModelManifest, request: InferRequest, predictions: Predictions) -> bytes:
    """The JSON that answers an infer request: its id, the outputs it wants, flat and row-major."""
    response: Json = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        response["id"] = request.id
    if model.caveat:
        response["parameters"] = {"caveat": model.caveat}
    response["outputs"] = []
    for name in request.outputs:
        values = getattr(predictions, name)
        response["outputs"].append(
            {
                "name": name,
                "shape": list(values.shape),
                "datatype": DATATYPES[values.dtype.name],
                "data": values.ravel().tolist(),
            }
        )
    # Writes 10,000 floats in 0.9 ms, where json takes 6.7 ms.
    return to_json(response)


def _tensor_metadata(spec: TensorSpec) -> Json:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": list(spec.shape)}


def _parse_json(body: bytes) -> _Request:
    try:
        return _Request.model_validate(from_json(body, allow_inf_nan=False))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        reason = problem["msg"].lower()
        raise RequestInvalid(
            f"Not an infer request: {short(where) if where else 'the body'}: {reason}. "
            'Send {"inputs": [{"name", "shape", "datatype", "data"}]}.'
        ) from None
    except ValueError as error:
        raise RequestInvalid(
            f"The body is not JSON: {error}. Send an infer request in UTF-8 JSON."
        ) from None


def _check_shape(shape: list[int], image: tuple[int, int], *, max_rows: int) -> None:
    if len(shape) != 3 or tuple(shape[1:]) != image or shape[0] < 1:
        raise RequestInvalid(
            f"Shape of {INPUT!r} is {short(shape)}, but the model takes {[-1, *image]}. "
            "Send at least one image of this size."
        )
    if shape[0] > max_rows:
        raise PayloadTooLarge(
            f"The request has {short(shape[0])} rows, but one may have {max_rows}. "
            "Send them in several requests."
        )


def _pixels(data: Any, shape: list[int]) -> Images:
    """Flat or nested JSON numbers as uint8 of this shape."""
    flat = _flatten(data, shape)
    # bytes() takes no floats and no strings and checks the range, but it takes bools.
    try:
        pixels = None if bool in set(map(type, flat)) else bytes(flat)
    except (TypeError, ValueError):
        pixels = None
    if pixels is None:
        at = next(i for i, value in enumerate(flat) if not _is_pixel(value))
        raise RequestInvalid(
            f"Value {at} of {INPUT!r}, in row-major order, is {short(flat[at])}, "
            f"but a pixel is an integer. Send 0 to {PIXEL_MAX}."
        )
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def _flatten(data: object, shape: list[int]) -> list[Any]:
    """The values of a list that is flat, or nested as `shape` says, in row-major order."""
    if not isinstance(data, list):
        raise RequestInvalid(f"Data of {INPUT!r} is no list. Send its values, flat or nested.")
    if data and isinstance(data[0], list):
        for size in shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in data):
                raise RequestInvalid(
                    f"Data of {INPUT!r} is nested otherwise than its shape {shape} says. "
                    "Nest it so, or send it flat."
                )
            data = list(chain.from_iterable(data))
    if len(data) != (expected := math.prod(shape)):
        raise RequestInvalid(
            f"Data of {INPUT!r} has {len(data)} values, but its shape {shape} holds {expected}. "
            "Send as many as the shape says."
        )
    return data


def _is_pixel(value: Any) -> bool:
    return type(value) is int and 0 <= value <= PIXEL_MAX


def _wanted(outputs: list[_Output] | None, specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """Names of the outputs to send: the ones asked for, in that order, or all."""
    known = tuple(spec.name for spec in specs)
    if not outputs:
        return known
    for output in outputs:
        if output.name not in known:
            raise RequestInvalid(
                f"Output {short(output.name)} is unknown. Ask for {' or '.join(known)}, "
                "or for none by name to get all."
            )
    return tuple(dict.fromkeys(output.name for output in outputs))
