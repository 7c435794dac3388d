"""The forward pass by hand, in numpy, from the weights of a model version.

Neither torch nor onnxruntime takes part, so the tests hold both of them against it, and a reader
sees all that the network does.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.arrays import Float32Array, UInt8Array
from pipeline.contract import PIXEL_MAX
from pipeline.errors import ModelRejected


def forward(onnx_model: bytes, images: UInt8Array) -> Float32Array:
    """Probabilities float32 (N, classes) of raw pixels uint8 (N, height, width)."""
    x = images.reshape(len(images), -1).astype(np.float32) / np.float32(PIXEL_MAX)
    *hidden, last = layers(onnx_model)
    for weight, bias in hidden:
        x = relu(dense(x, weight, bias))
    return softmax(dense(x, *last))


def layers(onnx_model: bytes) -> list[tuple[Float32Array, Float32Array]]:
    """Weight (outputs, inputs) and bias (outputs,) of each dense layer, in order."""
    graph = onnx.load_model_from_string(onnx_model).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = [
        (values[node.input[1]], values[node.input[2]])
        for node in graph.node
        if node.op_type == "Gemm"
    ]
    if not found:
        raise ModelRejected("This ONNX file has no dense layers of the form that export writes.")
    return found


def dense(x: Float32Array, weight: Float32Array, bias: Float32Array) -> Float32Array:
    """x W^T + b: (N, inputs) to (N, outputs)."""
    return x @ weight.T + bias


def relu(x: Float32Array) -> Float32Array:
    """max(x, 0), value by value."""
    return np.maximum(x, 0)


def softmax(x: Float32Array) -> Float32Array:
    """Rows to probabilities; the row's maximum is taken off first, so exp cannot overflow."""
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    result: Float32Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result
