"""Open Inference Protocol (V2): its words for the model and its tensors, and what describes them.

Knows nothing of HTTP. Only the model's manifest says what its tensors are. The extensions are those
of Triton's documentation, docs/protocol/extension_*.md.
"""

from __future__ import annotations

from pipeline.artifacts.manifests import ModelManifest, TensorSpec
from serving.protocol.types import DATATYPES, Json

SERVER = {
    "name": "ray-onnx-pipeline",
    "version": "0.1.0",
    "extensions": ["binary_tensor_data", "classification", "model_configuration", "statistics"],
}
"""Metadata of the server, as GET /v2 answers it."""

PLATFORM = "onnx_onnxv1"


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
