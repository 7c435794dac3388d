"""Round the weights of an Mlp's first layer to uint8, and multiply pixels by them as integers.

The first layer holds nearly all weights of a small network, and its input is integers already, so
only the weights are rounded. They are unsigned because that product is exact on every CPU: signed
weights saturate on CPUs without VNNI (onnxruntime's documentation, "Quantize ONNX Models").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from pipeline.contract import PIXEL_MAX

WEIGHT, ZERO, STEP, SCALED = "weight", "zero", "step", "scaled"
"""Names in the graph: the uint8 weights, the one that means 0, a unit's step, the layer's product.

A unit's step is the float32 by which one count of the integer product is multiplied.
"""

NO_BIAS = "no_bias"
"""Name of the zeros that are added if the layer has no bias."""

ZERO_WEIGHT = 128
"""The uint8 that stands for a weight of 0."""

NUM_STEPS = 127
"""The steps from 0 to a unit's largest weight."""


def quantize(model: bytes) -> bytes:
    """Return the model with its first layer in integers; inputs, outputs and layers stay.

    Each unit's weights become whole steps of its largest weight / NUM_STEPS.
    """
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    # The exported graph begins: image -> Reshape -> Cast to float32 -> Div by 255 -> Gemm.
    gemm = next(node for node in graph.node if node.op_type == "Gemm")
    divide = producers[gemm.input[0]]
    cast = producers[divide.input[0]]

    # torch's exporter leaves out a bias that is 0 in all units.
    bias = gemm.input[2] if len(gemm.input) > 2 else NO_BIAS
    new_nodes = _integer_layer(pixels=cast.input[0], bias=bias, output=gemm.output[0])
    rest = [node for node in graph.node if node not in (cast, divide, gemm)]
    index = next(i for i, node in enumerate(rest) if gemm.output[0] in node.input)
    replaced = (gemm.input[1], divide.input[1])
    initializers = [tensor for tensor in graph.initializer if tensor.name not in replaced]
    constants = _rounded(values[gemm.input[1]])
    if bias == NO_BIAS:
        constants[NO_BIAS] = np.zeros_like(constants[STEP])
    for name, array in constants.items():
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    quantized = helper.make_graph(
        [*rest[:index], *new_nodes, *rest[index:]],
        graph.name,
        graph.input,
        graph.output,
        initializers,
    )
    result = helper.make_model(
        quantized, opset_imports=proto.opset_import, ir_version=proto.ir_version
    )
    result.metadata_props.extend(proto.metadata_props)
    onnx.checker.check_model(result, full_check=True)
    return bytes(result.SerializeToString(deterministic=True))


def _rounded(weight: Any) -> dict[str, Any]:
    """Return the constants of the integer layer for float32 weights (units, pixels)."""
    largest = np.abs(weight).max(axis=1).clip(min=np.finfo(np.float32).tiny)
    step = largest / np.float32(NUM_STEPS)
    rounded = np.rint(weight / step[:, None]).astype(np.int16) + ZERO_WEIGHT
    return {
        WEIGHT: rounded.T.astype(np.uint8),
        ZERO: np.array(ZERO_WEIGHT, np.uint8),
        STEP: step / np.float32(PIXEL_MAX),
    }


def _integer_layer(*, pixels: str, bias: str, output: str) -> list[NodeProto]:
    """Return the nodes: integer product, to float32, times the steps, plus the bias."""
    return [
        helper.make_node("MatMulInteger", [pixels, WEIGHT, "", ZERO], ["product"]),
        helper.make_node("Cast", ["product"], ["sums"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sums", STEP], [SCALED]),
        helper.make_node("Add", [SCALED, bias], [output]),
    ]
