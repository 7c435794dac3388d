"""The configuration with which Triton serves a model version."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.artifacts.manifests import TensorSpec

TRITON_MAX_BATCH_SIZE = 4096


def triton_config(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """config.pbtxt, with which Triton serves the version folder as its model.

    Triton's axes leave out the batch. Fields: triton-inference-server/common, model_config.proto.
    """
    types = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int64": "TYPE_INT64"}

    def block(tensor: TensorSpec) -> str:
        dims = ", ".join(map(str, tensor.shape[1:])) or "1"
        reshape = "" if len(tensor.shape) > 1 else " reshape { shape: [ ] }"
        kind = types[tensor.dtype]
        return f'  {{ name: "{tensor.name}" data_type: {kind} dims: [ {dims} ]{reshape} }}'

    def blocks(tensors: Sequence[TensorSpec]) -> str:
        return ",\n".join(block(tensor) for tensor in tensors)

    text = (
        f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {TRITON_MAX_BATCH_SIZE}\n'
        f"input [\n{blocks(inputs)}\n]\noutput [\n{blocks(outputs)}\n]\n"
        "dynamic_batching { }\n"
    )
    return text.encode()
