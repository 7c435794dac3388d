"""The layers of an Mlp as a table and as a Mermaid graph; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipeline.contract import INPUT, PREDICTION, PROBABILITIES, ImageSpec
from pipeline.models.onnx_summary import LayerSummary, num_parameters

BYTES_PER_PARAMETER = 4
"""Bytes of a float32; only the first layer's weights may be stored otherwise."""


def layer_table(image: ImageSpec, hidden_sizes: Sequence[int]) -> list[LayerSummary]:
    """Return the layers of an Mlp in order, with their shapes and numbers of parameters."""
    flat = (1, image.num_pixels)
    rows = [LayerSummary("scale, flatten", (1, *image.shape), flat, 0)]
    sizes = [*hidden_sizes, image.num_classes]
    inputs = image.num_pixels
    for number, units in enumerate(sizes):
        shape = (1, units)
        rows.append(LayerSummary(f"dense_{number}", (1, inputs), shape, inputs * units + units))
        activation = "softmax" if number == len(hidden_sizes) else "relu"
        rows.append(LayerSummary(f"{activation}_{number}", shape, shape, 0))
        inputs = units
    return rows


def num_bytes(rows: Sequence[LayerSummary], weights: Literal["float32", "uint8"]) -> int:
    """Return the size of all parameters, whose first layer has its weights stored as `weights`."""
    total = BYTES_PER_PARAMETER * num_parameters(rows)
    if weights == "uint8":
        (_, inputs), (_, units) = rows[1].input_shape, rows[1].output_shape
        # A weight takes one byte, and each unit has a step as float32.
        total += BYTES_PER_PARAMETER * units - (BYTES_PER_PARAMETER - 1) * inputs * units
    return total


def mermaid_graph(rows: Sequence[LayerSummary]) -> str:
    """Return the layers as a Mermaid flowchart, from the model's input to its outputs."""
    lines = ["flowchart TD", f'    input(["{INPUT}: uint8 {list(rows[0].input_shape)}"])']
    previous = "input"
    for number, row in enumerate(rows):
        weights = f"<br/>{row.parameters:,} parameters" if row.parameters else ""
        lines.append(f'    l{number}["{row.layer}{weights}"]')
        lines.append(f"    {previous} --> l{number}")
        previous = f"l{number}"
    probabilities = f"{PROBABILITIES}: float32 {list(rows[-1].output_shape)}"
    lines.append(f'    {previous} --> p(["{probabilities}"])')
    lines.append(f'    p -->|argmax| c(["{PREDICTION}: int64 [1]"])')
    return "\n".join(lines)
