"""The configuration file that lets NVIDIA Triton serve a model version."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.artifacts.manifests import TensorSpec

TRITON_MAX_BATCH_SIZE = 4096

TRITON_DTYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int64": "TYPE_INT64"}


def triton_config(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """Return config.pbtxt, with which Triton serves a version's folder.

    Triton's shapes leave out the batch axis. The fields are those of model_config.proto in
    triton-inference-server/common.
    """
    text = (
        f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {TRITON_MAX_BATCH_SIZE}\n'
        f"input [\n{_tensors(inputs)}\n]\noutput [\n{_tensors(outputs)}\n]\n"
        "dynamic_batching { }\n"
    )
    return text.encode()


def _tensors(tensors: Sequence[TensorSpec]) -> str:
    return ",\n".join(map(_tensor, tensors))


def _tensor(tensor: TensorSpec) -> str:
    dtype = TRITON_DTYPES[tensor.dtype]
    dims = ", ".join(map(str, tensor.shape[1:])) or "1"
    # Triton has no shape without axes, so one value an image is declared as [1] and reshaped.
    reshape = "" if len(tensor.shape) > 1 else " reshape { shape: [ ] }"
    return f'  {{ name: "{tensor.name}" data_type: {dtype} dims: [ {dims} ]{reshape} }}'
