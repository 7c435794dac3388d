"""Messages of GRPCInferenceService -> requests of the REST protocol."""

from __future__ import annotations

from typing import Any

from serving.protocol.v2_request import InputTensor, RequestBody, RequestedOutput


def to_request_body(message: Any) -> RequestBody:
    """The message in the words of the REST protocol; raw contents are binary tensors."""
    raw = [len(content) for content in message.raw_input_contents]
    inputs = []
    for index, given in enumerate(message.inputs):
        parameters = _to_parameters(given.parameters)
        data = None
        if index < len(raw):
            parameters["binary_data_size"] = raw[index]
        else:
            data = list(given.contents.uint_contents)
        shape = list(given.shape)
        inputs.append(
            InputTensor(
                name=given.name,
                shape=shape,
                datatype=given.datatype,
                data=data,
                parameters=parameters,
            )
        )
    return RequestBody(
        inputs=inputs,
        parameters=_to_parameters(message.parameters),
        outputs=[
            RequestedOutput(name=wanted.name, parameters=_to_parameters(wanted.parameters))
            for wanted in message.outputs
        ],
    )


def _to_parameters(parameters: Any) -> dict[str, Any]:
    chosen = ((name, value.WhichOneof("parameter_choice")) for name, value in parameters.items())
    return {name: getattr(parameters[name], kind) for name, kind in chosen if kind}
