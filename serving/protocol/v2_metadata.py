"""Metadata of the Open Inference Protocol (V2): the server, the model and its tensors.

All that describes a tensor comes from the model's manifest. The extensions are those of Triton's
documentation, docs/protocol/extension_*.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from pipeline.artifacts.manifests import ModelManifest, TensorSpec
from serving.protocol.types import DATATYPES, Json

SERVER = {
    "name": "ray-onnx-pipeline",
    "version": "0.2.0",
    "extensions": ["binary_tensor_data", "classification", "model_configuration", "statistics"],
}
"""Metadata of the server, the answer to GET /v2."""

PLATFORM = "onnx_onnxv1"


def model_metadata(model: ModelManifest, loaded: Sequence[ModelManifest]) -> Json:
    """Return the answer to GET /v2/models/NAME; `loaded` are the versions that answer."""
    return {
        "name": model.name,
        "versions": [other.version for other in loaded],
        "platform": PLATFORM,
        "inputs": [_tensor_metadata(spec) for spec in model.inputs],
        "outputs": [_tensor_metadata(spec) for spec in model.outputs],
    }


def model_config(model: ModelManifest, *, max_rows: int) -> Json:
    """Return the answer to GET /v2/models/NAME/config: Triton's ModelConfig as JSON."""
    image = model.image
    parameters = {"class_names": ",".join(image.class_names)}
    # How image files are prepared, which the drawing page needs to know.
    parameters |= {name: str(value).lower() for name, value in asdict(image.preparation).items()}
    return {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": max_rows,
        "input": [_tensor_config(spec) for spec in model.inputs],
        "output": [_tensor_config(spec) for spec in model.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }


def repository_index(loaded: Sequence[ModelManifest]) -> list[Json]:
    """Return the answer to POST /v2/repository/index: the versions that answer."""
    return [
        {"name": model.name, "version": model.version, "state": "READY", "reason": ""}
        for model in loaded
    ]


def _tensor_metadata(spec: TensorSpec) -> Json:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": list(spec.shape)}


def _tensor_config(spec: TensorSpec) -> Json:
    config: Json = {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}"}
    # Triton's dims leave out the batch axis but must not be empty: (N,) is (N, 1), reshaped.
    if len(spec.shape) == 1:
        return config | {"dims": [1], "reshape": {"shape": []}}
    return config | {"dims": list(spec.shape[1:])}
