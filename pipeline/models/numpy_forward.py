"""The forward pass of an Mlp in numpy, from the weights in its ONNX file.

It uses neither torch nor onnxruntime: the tests compare both with it, and a reader sees all that
the network computes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.arrays import Float32Array, UInt8Array
from pipeline.contract import PIXEL_MAX
from pipeline.errors import ModelRejected
from pipeline.models.quantize import SCALED, STEP, WEIGHT, ZERO


def forward(onnx_model: bytes, images: UInt8Array) -> Float32Array:
    """Return probabilities, float32 (N, classes), of raw pixels, uint8 (N, height, width)."""
    x = images.reshape(len(images), -1).astype(np.float32) / np.float32(PIXEL_MAX)
    *hidden, last = layers(onnx_model)
    for weight, bias in hidden:
        x = relu(dense(x, weight, bias))
    return softmax(dense(x, *last))


def layers(onnx_model: bytes) -> list[tuple[Float32Array, Float32Array]]:
    """Return weight (outputs, inputs) and bias (outputs,) of each dense layer, in order.

    The weights of a layer that was rounded to uint8 are those that its integers stand for. Raise
    ModelRejected if there is no layer of a form that `export` writes.
    """
    graph = onnx.load_model_from_string(onnx_model).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    result = list[tuple[Float32Array, Float32Array]]()
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            counts = values[WEIGHT].astype(np.float32) - np.float32(values[ZERO])
            # The steps also scale the pixels, which `forward` has done by then.
            steps: Float32Array = values[STEP] * np.float32(PIXEL_MAX)
            weight = (counts * steps).T.astype(np.float32)
            add = next(other for other in graph.node if SCALED in other.input)
            result.append((weight, values[add.input[1]]))
        elif node.op_type == "Gemm":
            weight = values[node.input[1]]
            # torch's exporter leaves out a bias that is 0 in all units.
            zeros = np.zeros(len(weight), np.float32)
            result.append((weight, values[node.input[2]] if len(node.input) > 2 else zeros))
    if not result:
        raise ModelRejected("This ONNX file has no dense layers of the form that export writes.")
    return result


def dense(x: Float32Array, weight: Float32Array, bias: Float32Array) -> Float32Array:
    """Return x W^T + b: (N, inputs) to (N, outputs)."""
    return x @ weight.T + bias


def relu(x: Float32Array) -> Float32Array:
    """Return max(x, 0), element by element."""
    return np.maximum(x, 0)


def softmax(x: Float32Array) -> Float32Array:
    """Return probabilities by row. The row's maximum is subtracted, so that exp cannot overflow."""
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    result: Float32Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result
