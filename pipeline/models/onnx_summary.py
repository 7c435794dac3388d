"""The layers of any network as a table and as a Mermaid graph, from its ONNX file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import onnx
from onnx import ModelProto, ValueInfoProto

from pipeline.contract import INPUT, PREDICTION, PROBABILITIES


class LayerSummary(NamedTuple):
    """A row of the layer table. Shapes are those of a batch of one image."""

    layer: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int


def num_parameters(rows: Sequence[LayerSummary]) -> int:
    """Return the number of parameters of all layers."""
    return sum(row.parameters for row in rows)


def onnx_layers(model: ModelProto) -> list[LayerSummary]:
    """Return the operators that have weights, in order. Weights that are shared count once."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = _shapes((*graph.input, *graph.value_info, *graph.output))
    weights = {
        tensor.name: tuple(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims
    }
    rows = list[LayerSummary]()
    for node in graph.node:
        own = [weights.pop(name) for name in node.input if name in weights]
        if own:
            inputs = next((name for name in node.input if name in shapes), "")
            rows.append(
                LayerSummary(
                    f"{node.op_type} {' x '.join(map(str, own[0]))}",
                    shapes.get(inputs, ()),
                    shapes.get(node.output[0], ()),
                    sum(math.prod(shape) for shape in own),
                )
            )
    return rows


def onnx_graph(model: ModelProto) -> str:
    """Return the operators as a Mermaid flowchart, from the model's input to its outputs."""
    graph = model.graph
    shapes = _shapes((*graph.input, *graph.output))
    lines = ["flowchart TD", f'    input(["{INPUT}: uint8 {list(shapes[INPUT])}"])']
    producers = {INPUT: "input"}
    for number, node in enumerate(graph.node):
        lines.append(f'    n{number}["{node.op_type}"]')
        for name in filter(producers.get, node.input):
            lines.append(f"    {producers[name]} --> n{number}")
        producers |= dict.fromkeys(filter(None, node.output), f"n{number}")
    for name, dtype in ((PROBABILITIES, "float32"), (PREDICTION, "int64")):
        lines.append(f'    {producers[name]} --> {name}(["{name}: {dtype} {list(shapes[name])}"])')
    return "\n".join(lines)


def _shapes(values: Iterable[ValueInfoProto]) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name; a free axis, such as that of the batch, is 1."""
    return {
        value.name: tuple(axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim)
        for value in values
    }
