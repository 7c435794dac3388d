"""Open Inference Protocol (V2): its words for the model and its tensors, and what describes them.

Knows nothing of HTTP. Only the model's manifest says what its tensors are. The extensions are those
of Triton's documentation, docs/protocol/extension_*.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from pipeline.manifest import ModelManifest, TensorSpec

SERVER = {
    "name": "ray-onnx-pipeline",
    "version": "0.1.0",
    "extensions": ["binary_tensor_data", "classification", "model_configuration", "statistics"],
}
"""Metadata of the server, as GET /v2 answers it."""

PLATFORM = "onnx_onnxv1"
DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}
"""The protocol's names of numpy's dtypes."""

JSON_LENGTH = "inference-header-content-length"
"""The header of a body in which binary tensors follow so many bytes of JSON."""

Images: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
"""Raw pixels, uint8 (N, height, width)."""

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """An output to send: as binary, or the `num_classes` best classes of each row in its place."""

    name: str
    binary: bool = False
    num_classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A checked request: images uint8 (N, height, width), N >= 1, and the outputs to send."""

    images: Images
    outputs: tuple[Output, ...]
    id: str | None = None


def model_metadata(model: ModelManifest) -> Json:
    """What GET /v2/models/NAME answers."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": PLATFORM,
        "inputs": [_tensor_metadata(spec) for spec in model.inputs],
        "outputs": [_tensor_metadata(spec) for spec in model.outputs],
    }


def model_config(model: ModelManifest, *, max_rows: int) -> Json:
    """What GET /v2/models/NAME/config answers: Triton's ModelConfig as JSON."""
    return {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": max_rows,
        "input": [_tensor_config(spec) for spec in model.inputs],
        "output": [_tensor_config(spec) for spec in model.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "parameters": {"class_names": {"string_value": ",".join(model.image.class_names)}},
    }


def repository_index(model: ModelManifest) -> list[Json]:
    """What POST /v2/repository/index answers: what is served."""
    return [{"name": model.name, "version": model.version, "state": "READY", "reason": ""}]


def _tensor_metadata(spec: TensorSpec) -> Json:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": list(spec.shape)}


def _tensor_config(spec: TensorSpec) -> Json:
    config: Json = {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}"}
    # The axis of the batch is left out there, and a tensor must have another.
    if len(spec.shape) == 1:
        return config | {"dims": [1], "reshape": {"shape": []}}
    return config | {"dims": list(spec.shape[1:])}
