"""Infer requests of the Open Inference Protocol -> arrays: JSON, binary tensors, raw pixels.

`Request` is what every form of a request is brought into, and `check` what each must then pass.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from jiter import from_json
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.arrays import UInt8Array
from pipeline.artifacts.manifests import ModelManifest
from pipeline.contract import INPUT, PIXEL_MAX, PROBABILITIES
from serving.errors import PayloadTooLarge, RequestInvalid, safe_repr
from serving.protocol.types import DATATYPES, InferRequest, Output

Parameters: TypeAlias = dict[str, bool | int | float | str]


class StrictModel(BaseModel):
    """Base of the objects of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class InputTensor(StrictModel):
    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: Parameters = {}


class RequestedOutput(StrictModel):
    name: str
    parameters: Parameters = {}


class RequestBody(StrictModel):
    inputs: list[InputTensor]
    id: str | None = None
    model_name: str | None = None
    """What the address says already; KServe's client repeats it."""
    model_version: str | None = None
    parameters: Parameters = {}
    outputs: list[RequestedOutput] | None = None


def parse_request(
    body: bytes, json_bytes: int | None, model: ModelManifest, *, max_rows: int
) -> InferRequest:
    """An infer request; RequestInvalid or PayloadTooLarge where it is not one to run.

    `json_bytes` of the body are JSON, and binary tensors follow; None stands for all of it.
    """
    size = len(body) if json_bytes is None else json_bytes
    if size > len(body):
        raise RequestInvalid(
            f"The JSON of the request is said to have {size} bytes, but the body has {len(body)}. "
            "Send the length of the JSON part."
        )
    request = _parse_json(body[:size] if size < len(body) else body)
    return check_request(request, memoryview(body)[size:], model, max_rows=max_rows)


def check_request(
    request: RequestBody, binary: memoryview, model: ModelManifest, *, max_rows: int
) -> InferRequest:
    """What a request asks of this model, its binary tensors being these bytes.

    Raises RequestInvalid or PayloadTooLarge where it is not one to run.
    """
    if [given.name for given in request.inputs] != [INPUT]:
        names = ", ".join(safe_repr(given.name) for given in request.inputs[:3]) or "none"
        raise RequestInvalid(f"Inputs are {names}, but the model takes one: send {INPUT!r} alone.")
    image = request.inputs[0]
    if image.datatype != DATATYPES["uint8"]:
        raise RequestInvalid(
            f"Datatype of {INPUT!r} is {safe_repr(image.datatype)}, but the model takes raw pixels. "
            f"Send {DATATYPES['uint8']}, 0 to {PIXEL_MAX}."
        )
    _check_shape(image.shape, model.image.shape, max_rows=max_rows)
    return InferRequest(
        images=_images(image, binary),
        outputs=_requested_outputs(request, model),
        id=request.id,
    )


def parse_raw(body: bytes, model: ModelManifest, *, binary: bool, max_rows: int) -> InferRequest:
    """A request that is pixels and nothing else, as many images as its length says."""
    num_pixels = model.image.num_pixels
    if not body or len(body) % num_pixels:
        raise RequestInvalid(
            f"The body has {len(body)} bytes, but an image of this model has {num_pixels}, a byte a "
            "pixel. Send whole images, end to end."
        )
    shape = [len(body) // num_pixels, *model.image.shape]
    _check_shape(shape, model.image.shape, max_rows=max_rows)
    return InferRequest(
        images=np.frombuffer(body, np.uint8).reshape(shape),
        outputs=tuple(Output(spec.name, binary) for spec in model.outputs),
    )


def pixels_from_json(data: Any, shape: list[int]) -> UInt8Array:
    """Flat or nested JSON numbers as uint8 of this shape; RequestInvalid where they are not."""
    flat = _flatten(data, shape)
    kinds = set(map(type, flat))
    try:
        # Some clients know no integers: 7.0 is 7.
        if float in kinds and kinds <= {int, float}:
            flat = [int(value) if _is_pixel(value) else value for value in flat]
        # bytes() takes no floats and no strings and checks the range, but it takes bools.
        values = None if bool in kinds else bytes(flat)
    except (TypeError, ValueError):
        values = None
    if values is None:
        at = next(i for i, value in enumerate(flat) if not _is_pixel(value))
        raise RequestInvalid(
            f"Value {at} of {INPUT!r}, in row-major order, is {safe_repr(flat[at])}, "
            f"but a pixel is an integer. Send 0 to {PIXEL_MAX}."
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def parse_json(body: bytes) -> Any:
    """The value of a body in strict JSON; RequestInvalid where it is not that."""
    try:
        return from_json(body, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise RequestInvalid(f"The body is not JSON: {error}. Send UTF-8 JSON.") from None


def _parse_json(body: bytes) -> RequestBody:
    try:
        return RequestBody.model_validate(parse_json(body))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        reason = problem["msg"].lower()
        raise RequestInvalid(
            f"Not an infer request: {safe_repr(where) if where else 'the body'}: {reason}. "
            'Send {"inputs": [{"name", "shape", "datatype", "data"}]}.'
        ) from None


def _check_shape(shape: list[int], image: tuple[int, int], *, max_rows: int) -> None:
    if len(shape) != 3 or tuple(shape[1:]) != image or shape[0] < 1:
        raise RequestInvalid(
            f"Shape of {INPUT!r} is {safe_repr(shape)}, but the model takes {[-1, *image]}. "
            "Send at least one image of this size."
        )
    if shape[0] > max_rows:
        raise PayloadTooLarge(
            f"The request has {safe_repr(shape[0])} rows, but one may have {max_rows}. "
            "Send them in several requests."
        )


def _images(image: InputTensor, binary: memoryview) -> UInt8Array:
    """The tensor, from its JSON or from what follows the JSON; a view of the latter."""
    declared = image.parameters.get("binary_data_size")
    if declared is None:
        if binary:
            raise RequestInvalid(
                f"{len(binary)} bytes follow the JSON, but no input has binary_data_size. "
                "Say there how many are its own."
            )
        return pixels_from_json(image.data, image.shape)
    if image.data is not None:
        raise RequestInvalid(f"{INPUT!r} has data and binary_data_size. Send one of them.")
    expected = math.prod(image.shape)
    if type(declared) is not int or not declared == expected == len(binary):
        raise RequestInvalid(
            f"binary_data_size of {INPUT!r} is {safe_repr(declared)} and {len(binary)} bytes follow "
            f"the JSON, but its shape {image.shape} takes {expected}. Send so many, and say so."
        )
    return np.frombuffer(binary, np.uint8).reshape(image.shape)


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
    return type(value) in (int, float) and 0 <= value <= PIXEL_MAX and value == int(value)


def _requested_outputs(request: RequestBody, model: ModelManifest) -> tuple[Output, ...]:
    """The outputs to send: the ones asked for, in that order, or all."""
    known = [spec.name for spec in model.outputs]
    every = _flag(request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return tuple(Output(name, every) for name in known)
    wanted = dict[str, Output]()
    for output in request.outputs:
        if output.name not in known:
            raise RequestInvalid(
                f"Output {safe_repr(output.name)} is unknown. Ask for {' or '.join(known)}, "
                "or for none by name to get all."
            )
        binary = _flag(output.parameters, "binary_data", default=every)
        wanted.setdefault(output.name, Output(output.name, binary, _num_classes(output)))
    return tuple(wanted.values())


def _flag(parameters: Parameters, name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestInvalid(f"Parameter {name} is {safe_repr(value)}. Send true or false.")
    return value


def _num_classes(output: RequestedOutput) -> int:
    value = output.parameters.get("classification", 0)
    if type(value) is not int or value < 0 or (value and output.name != PROBABILITIES):
        raise RequestInvalid(
            f"Classification of {output.name} is {safe_repr(value)}. Ask {PROBABILITIES} for a number "
            "of classes, 1 or more."
        )
    return value
