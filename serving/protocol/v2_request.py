"""Infer requests of the Open Inference Protocol: JSON, binary tensors or raw pixels to arrays.

HTTP bodies come through `parse_request` or `parse_raw`. gRPC messages are converted to a
`RequestBody`, the form of the JSON, and come through `check_request`, as `parse_request` does.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Annotated, Any, TypeAlias

import numpy as np
from jiter import from_json
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pipeline.arrays import UInt8Array
from pipeline.artifacts.manifests import ModelManifest
from pipeline.contract import INPUT, PIXEL_MAX, PROBABILITIES
from serving.errors import PayloadTooLarge, RequestInvalid, safe_repr
from serving.protocol.types import DATATYPES, InferRequest, Output

UTF8_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Parameters: TypeAlias = Annotated[
    dict[str, bool | int | float | str],
    BeforeValidator(lambda value: {} if value is None else value),
]
"""Parameters; clients that write all fields of their own send null for none."""


class StrictModel(BaseModel):
    """Base of the objects of a request: unknown fields are ignored, and types not converted."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class InputTensor(StrictModel):
    """An input: its values are `data`, or `binary_data_size` bytes after the JSON."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: Parameters = {}


class RequestedOutput(StrictModel):
    """An output that the client asks for by name."""

    name: str
    parameters: Parameters = {}


class RequestBody(StrictModel):
    """The JSON of an infer request."""

    inputs: list[InputTensor]
    id: str | None = None
    model_name: str | None = None
    """Ignored, as is `model_version`: the address names both, and KServe's client repeats them."""
    model_version: str | None = None
    parameters: Parameters = {}
    outputs: list[RequestedOutput] | None = None


def parse_request(
    body: bytes, json_bytes: int | None, model: ModelManifest, *, max_rows: int
) -> InferRequest:
    """Return the infer request in a body of JSON, followed by binary tensors or not.

    The first `json_bytes` bytes are JSON; None means all of them. Raise RequestInvalid if the body
    breaks the protocol or does not fit the model, PayloadTooLarge if it has more than `max_rows`
    rows.
    """
    size = len(body) if json_bytes is None else json_bytes
    if size > len(body):
        raise RequestInvalid(
            f"The JSON of the request should have {size} bytes, but the whole body has "
            f"{len(body)} bytes. Send the length of the JSON alone."
        )
    request = _parse_body(body[:size] if size < len(body) else body)
    return check_request(request, memoryview(body)[size:], model, max_rows=max_rows)


def check_request(
    request: RequestBody, binary: memoryview, model: ModelManifest, *, max_rows: int
) -> InferRequest:
    """Return the infer request if this model can answer it; `binary` holds its binary tensors.

    Raise RequestInvalid if it does not fit the model, PayloadTooLarge if it has more than
    `max_rows` rows.
    """
    if [tensor.name for tensor in request.inputs] != [INPUT]:
        # Name three at most: a request may have thousands.
        names = ", ".join(safe_repr(tensor.name) for tensor in request.inputs[:3]) or "none"
        raise RequestInvalid(f"Inputs are {names}, but the model takes one: send {INPUT!r} alone.")
    tensor = request.inputs[0]
    if tensor.datatype != DATATYPES["uint8"]:
        raise RequestInvalid(
            f"Datatype of {INPUT!r} is {safe_repr(tensor.datatype)}, but the model takes raw "
            f"pixels. Send {DATATYPES['uint8']}, 0 to {PIXEL_MAX}."
        )
    _check_shape(tensor.shape, model.image.shape, max_rows=max_rows)
    return InferRequest(
        images=_tensor_values(tensor, binary),
        outputs=_requested_outputs(request, model),
        id=request.id,
    )


def parse_raw(body: bytes, model: ModelManifest, *, binary: bool, max_rows: int) -> InferRequest:
    """Return the infer request in a body of raw pixels, whose length gives the number of images.

    It asks for all outputs, in binary or JSON. Raise RequestInvalid if the body is not a whole
    number of images, PayloadTooLarge if it has more than `max_rows`.
    """
    num_pixels = model.image.num_pixels
    if not body or len(body) % num_pixels:
        raise RequestInvalid(
            f"The body has {len(body)} bytes, but an image of this model has {num_pixels}, one "
            "byte per pixel. Send whole images, one after another."
        )
    shape = [len(body) // num_pixels, *model.image.shape]
    _check_shape(shape, model.image.shape, max_rows=max_rows)
    return InferRequest(
        images=np.frombuffer(body, np.uint8).reshape(shape),
        outputs=tuple(Output(spec.name, binary) for spec in model.outputs),
    )


def pixels_from_json(data: Any, shape: list[int]) -> UInt8Array:
    """Return flat or nested JSON numbers as uint8 of this shape.

    Raise RequestInvalid if their number or nesting differs from the shape, or if one is not an
    integer from 0 to 255.
    """
    values = _flatten(data, shape)
    kinds = set(map(type, values))
    try:
        # Some clients have only floats: accept 7.0 as 7.
        if float in kinds and kinds <= {int, float}:
            values = [int(value) if _is_pixel(value) else value for value in values]
        # bytes() is the fastest check: it refuses floats, strings and numbers out of range. It
        # accepts bools, so refuse these first.
        pixels = None if bool in kinds else bytes(values)
    except (TypeError, ValueError):
        pixels = None
    if pixels is None:
        index = next(i for i, value in enumerate(values) if not _is_pixel(value))
        raise RequestInvalid(
            f"Value {index} of {INPUT!r}, in row-major order, is {safe_repr(values[index])}, "
            f"but a pixel is an integer. Send 0 to {PIXEL_MAX}."
        )
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def parse_json(body: bytes) -> Any:
    """Return the value of a body in strict JSON; raise RequestInvalid if it is anything else.

    A byte order mark is ignored, as RFC 8259 allows.
    """
    text = body.removeprefix(UTF8_BYTE_ORDER_MARK)
    try:
        return from_json(text, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise RequestInvalid(f"The body is not JSON: {error}. Send UTF-8 JSON.") from None


def _parse_body(json_part: bytes) -> RequestBody:
    try:
        return RequestBody.model_validate(parse_json(json_part))
    except ValidationError as error:
        raise not_a_request(error) from None


def not_a_request(error: ValidationError) -> RequestInvalid:
    """Return the error that tells the first of what was wrong."""
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, problem["loc"]))
    reason = problem["msg"].lower()
    return RequestInvalid(
        f"Not an infer request: {safe_repr(field) if field else 'the body'}: {reason}. "
        'Send {"inputs": [{"name", "shape", "datatype", "data"}]}.'
    )


def _check_shape(shape: list[int], image: tuple[int, int], *, max_rows: int) -> None:
    if len(shape) != 3 or tuple(shape[1:]) != image or shape[0] < 1:
        raise RequestInvalid(
            f"Shape of {INPUT!r} is {safe_repr(shape)}, but the model takes {[-1, *image]}. "
            "Send at least one image of this size."
        )
    if shape[0] > max_rows:
        raise PayloadTooLarge(
            f"The request has {safe_repr(shape[0])} rows, but at most {max_rows} are allowed. "
            "Send them in several requests."
        )


def _tensor_values(tensor: InputTensor, binary: memoryview) -> UInt8Array:
    """Return a tensor's values, from the JSON or as a view of the bytes that follow it."""
    declared = tensor.parameters.get("binary_data_size")
    if declared is None:
        if binary:
            raise RequestInvalid(
                f"{len(binary)} bytes follow the JSON, but no input has binary_data_size. "
                "Set it to the number of bytes of the tensor."
            )
        return pixels_from_json(tensor.data, tensor.shape)
    if tensor.data is not None:
        raise RequestInvalid(f"{INPUT!r} has data and binary_data_size. Send one of them.")
    expected = math.prod(tensor.shape)
    # type() and not isinstance(): true is an int, but not a size.
    if type(declared) is not int or not declared == expected == len(binary):
        raise RequestInvalid(
            f"binary_data_size of {INPUT!r} is {safe_repr(declared)} and {len(binary)} bytes "
            f"follow the JSON, but its shape {tensor.shape} takes {expected}. Send that many bytes "
            "and declare them."
        )
    return np.frombuffer(binary, np.uint8).reshape(tensor.shape)


def _flatten(data: object, shape: list[int]) -> list[Any]:
    """Return the values of a flat list, or of one nested as `shape`, in row-major order."""
    if not isinstance(data, list):
        raise RequestInvalid(f"Data of {INPUT!r} is not a list. Send its values, flat or nested.")
    if data and isinstance(data[0], list):
        # Remove one level of lists per axis, from the outside.
        for size in shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in data):
                raise RequestInvalid(
                    f"Data of {INPUT!r} is not nested as its shape {shape}. Nest it as the shape, "
                    "or send it flat."
                )
            data = list(chain.from_iterable(data))
    expected = math.prod(shape)
    if len(data) != expected:
        raise RequestInvalid(
            f"Data of {INPUT!r} has {len(data)} values, but its shape {shape} holds {expected}. "
            "Send as many as the shape holds."
        )
    return data


def _is_pixel(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= PIXEL_MAX and value == int(value)


def _requested_outputs(request: RequestBody, model: ModelManifest) -> tuple[Output, ...]:
    """Return the outputs that the client asks for, in its order, or all if it names none."""
    known_names = [spec.name for spec in model.outputs]
    all_binary = _bool_parameter(request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return tuple(Output(name, all_binary) for name in known_names)
    outputs = dict[str, Output]()
    for requested in request.outputs:
        if requested.name not in known_names:
            raise RequestInvalid(
                f"Output {safe_repr(requested.name)} is unknown. Ask for "
                f"{' or '.join(known_names)}, or leave out `outputs` to get all."
            )
        binary = _bool_parameter(requested.parameters, "binary_data", default=all_binary)
        output = Output(requested.name, binary, _num_classes(requested))
        # If an output is named twice, the first counts.
        outputs.setdefault(requested.name, output)
    return tuple(outputs.values())


def _bool_parameter(parameters: Parameters, name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestInvalid(f"Parameter {name} is {safe_repr(value)}. Send true or false.")
    return value


def _num_classes(output: RequestedOutput) -> int:
    value = output.parameters.get("classification", 0)
    if type(value) is not int or value < 0 or (value and output.name != PROBABILITIES):
        raise RequestInvalid(
            f"Classification of {output.name} is {safe_repr(value)}. Ask {PROBABILITIES} for a "
            "number of classes, 1 or more."
        )
    return value
