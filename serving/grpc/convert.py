"""Convert messages of GRPCInferenceService to the objects of the REST protocol."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from serving.errors import RequestInvalid
from serving.protocol.v2_request import (
    InputTensor,
    RequestBody,
    RequestedOutput,
    not_a_request,
)

MAX_PARTS = 64
"""Inputs, outputs and parameters of a request. Each takes some microseconds of the event loop."""


def to_request_body(message: Any) -> RequestBody:
    """Return a ModelInferRequest as the body of a REST request.

    Raw contents become binary tensors: the body has their sizes, and the caller their bytes. Raise
    RequestInvalid if there is too much of anything, or if a parameter is not one of JSON, such as
    NaN.
    """
    parts = message.inputs, message.outputs, message.raw_input_contents, message.parameters
    tensors = (*message.inputs[:MAX_PARTS], *message.outputs[:MAX_PARTS])
    if max(map(len, (*parts, *(tensor.parameters for tensor in tensors)))) > MAX_PARTS:
        raise RequestInvalid(
            f"The request has more than {MAX_PARTS} inputs, outputs or parameters. The model takes "
            "one input."
        )
    try:
        return _convert(message)
    except ValidationError as error:
        raise not_a_request(error) from None


def _convert(message: Any) -> RequestBody:
    raw_sizes = [len(content) for content in message.raw_input_contents]
    inputs = []
    for index, tensor in enumerate(message.inputs):
        parameters = _to_parameters(tensor.parameters)
        data = None
        if index < len(raw_sizes):
            parameters["binary_data_size"] = raw_sizes[index]
        else:
            data = list(tensor.contents.uint_contents)
        inputs.append(
            InputTensor(
                name=tensor.name,
                shape=list(tensor.shape),
                datatype=tensor.datatype,
                data=data,
                parameters=parameters,
            )
        )
    return RequestBody(
        inputs=inputs,
        parameters=_to_parameters(message.parameters),
        outputs=[
            RequestedOutput(name=output.name, parameters=_to_parameters(output.parameters))
            for output in message.outputs
        ],
    )


def _to_parameters(parameters: Any) -> dict[str, Any]:
    """Return a map of InferParameter as plain values, without those that are not set."""
    fields = ((name, value.WhichOneof("parameter_choice")) for name, value in parameters.items())
    return {name: getattr(parameters[name], field) for name, field in fields if field}
