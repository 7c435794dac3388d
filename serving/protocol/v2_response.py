"""Infer replies of the Open Inference Protocol: predictions to JSON and binary tensors."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from pydantic_core import to_json

from pipeline.artifacts.manifests import ModelManifest
from pipeline.contract import Predictions
from serving.protocol.types import DATATYPES, InferRequest, Json, Output

TensorData: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[Any]] | list[str]
"""Numbers, or strings in row-major order."""

_DATATYPE_OF = {np.dtype(name): datatype for name, datatype in DATATYPES.items()}


class ReplyBody(NamedTuple):
    """A body. Its first `json_bytes` bytes are JSON; if that is None, all of it is."""

    body: bytes
    json_bytes: int | None


def build_reply(model: ModelManifest, request: InferRequest, predictions: Predictions) -> ReplyBody:
    """Return the reply to an infer request: its id and the outputs it asks for, row-major."""
    reply: Json = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        reply["id"] = request.id
    if model.caveat:
        reply["parameters"] = {"caveat": model.caveat}
    outputs, binary_tensors = list[Json](), list[bytes]()
    for requested in request.outputs:
        name, datatype, shape, data = output_tensor(model, requested, predictions)
        output: Json = {"name": name, "datatype": datatype, "shape": shape}
        if requested.binary:
            tensor = to_bytes(data)
            binary_tensors.append(tensor)
            output["parameters"] = {"binary_data_size": len(tensor)}
        else:
            output["data"] = data.ravel().tolist() if isinstance(data, np.ndarray) else data
        outputs.append(output)
    reply["outputs"] = outputs
    # pydantic's writer takes 0.9 ms for 10,000 floats; the json module takes 6.7 ms.
    json_part = to_json(reply)
    if not binary_tensors:
        return ReplyBody(json_part, None)
    return ReplyBody(b"".join([json_part, *binary_tensors]), len(json_part))


class OutputTensor(NamedTuple):
    """An output as it is sent."""

    name: str
    datatype: str
    shape: list[int]
    data: TensorData


def output_tensor(
    model: ModelManifest, requested: Output, predictions: Predictions
) -> OutputTensor:
    """Return an output of the predictions: its values, or the names of the best classes."""
    values = getattr(predictions, requested.name)
    if not requested.num_classes:
        return OutputTensor(requested.name, _DATATYPE_OF[values.dtype], list(values.shape), values)
    rows = _best_classes(values, model.image.class_names, requested.num_classes)
    data = [name for row in rows for name in row]
    return OutputTensor(requested.name, "BYTES", [len(rows), len(rows[0])], data)


def to_bytes(data: TensorData) -> bytes:
    """Return numbers in little-endian order, or strings, each after its length as uint32."""
    if isinstance(data, np.ndarray):
        return data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
    encoded = (name.encode() for name in data)
    return b"".join(len(name).to_bytes(4, "little") + name for name in encoded)


def _best_classes(
    probabilities: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    class_names: tuple[str, ...],
    count: int,
) -> list[list[str]]:
    """Return each row's best classes, best first, as `value:index:name`."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(probabilities, order, 1)
    return [
        [f"{value}:{index}:{class_names[index]}" for value, index in zip(*row, strict=True)]
        for row in zip(values, order, strict=True)
    ]
