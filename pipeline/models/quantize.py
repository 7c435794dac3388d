"""An exported model with its first layer's product in integers: uint8 pixels by uint8 weights.

That layer holds nearly all of a small network's weights, and its input is integers as it is, so
only the weights are rounded. Unsigned, as the product is then exact on every CPU; signed ones
saturate on those without VNNI (onnxruntime, Quantize ONNX Models).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.contract import PIXEL_MAX

ZERO, STEPS = 128, 127
"""The byte that stands for 0, and the steps to either side of it."""


def quantize(model: bytes) -> bytes:
    """The same tensors and layers; each unit's weights in steps of its largest one / 127."""
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    dense = next(node for node in graph.node if node.op_type == "Gemm")
    divide = makers[dense.input[0]]
    cast = makers[divide.input[0]]
    weight = values[dense.input[1]]
    step = np.abs(weight).max(axis=1).clip(min=np.finfo(np.float32).tiny) / np.float32(STEPS)
    rounded = np.rint(weight / step[:, None]).astype(np.int16) + ZERO
    constants = {
        "weight": rounded.T.astype(np.uint8),
        "zero": np.array(ZERO, np.uint8),
        "step": step / np.float32(PIXEL_MAX),
    }
    nodes = [
        helper.make_node("MatMulInteger", [cast.input[0], "weight", "", "zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["sums"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sums", "step"], ["scaled"]),
        helper.make_node("Add", ["scaled", dense.input[2]], [dense.output[0]]),
    ]
    rest = [node for node in graph.node if node not in (cast, divide, dense)]
    at = next(i for i, node in enumerate(rest) if dense.output[0] in node.input)
    kept = [t for t in graph.initializer if t.name not in (dense.input[1], divide.input[1])]
    made = [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in constants.items()]
    quantized = helper.make_graph(
        [*rest[:at], *nodes, *rest[at:]],
        graph.name,
        graph.input,
        graph.output,
        [*kept, *made],
    )
    result = helper.make_model(
        quantized, opset_imports=proto.opset_import, ir_version=proto.ir_version
    )
    result.metadata_props.extend(proto.metadata_props)
    onnx.checker.check_model(result, full_check=True)
    return bytes(result.SerializeToString(deterministic=True))
