"""The layers of an MLP as a table and as a graph, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.contract import INPUT, PREDICTION, PROBABILITIES, ImageSpec

BYTES_PER_PARAMETER = 4


class LayerSummary(NamedTuple):
    """A layer in the table of a model; shapes are for a batch of one."""

    layer: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int


def layer_table(image: ImageSpec, hidden_sizes: Sequence[int]) -> list[LayerSummary]:
    """The layers of an Mlp in order, each with its shapes and number of parameters."""
    flat = (1, image.num_pixels)
    rows = [LayerSummary("scale, flatten", (1, *image.shape), flat, 0)]
    sizes = [*hidden_sizes, image.num_classes]
    before = image.num_pixels
    for number, units in enumerate(sizes):
        shape = (1, units)
        rows.append(LayerSummary(f"dense_{number}", (1, before), shape, before * units + units))
        activation = "softmax" if number == len(hidden_sizes) else "relu"
        rows.append(LayerSummary(f"{activation}_{number}", shape, shape, 0))
        before = units
    return rows


def num_parameters(rows: Sequence[LayerSummary]) -> int:
    """Parameters of all layers; times BYTES_PER_PARAMETER is their memory."""
    return sum(row.parameters for row in rows)


def mermaid_graph(rows: Sequence[LayerSummary]) -> str:
    """The layers as a Mermaid flowchart, with the tensors of the contract at its ends."""
    lines = ["flowchart TD", f'    input(["{INPUT}: uint8 {list(rows[0].input_shape)}"])']
    before = "input"
    for number, row in enumerate(rows):
        weights = f"<br/>{row.parameters:,} parameters" if row.parameters else ""
        lines.append(f'    l{number}["{row.layer}{weights}"]')
        lines.append(f"    {before} --> l{number}")
        before = f"l{number}"
    lines.append(f'    {before} --> p(["{PROBABILITIES}: float32 {list(rows[-1].output_shape)}"])')
    lines.append(f'    p -->|argmax| c(["{PREDICTION}: int64 [1]"])')
    return "\n".join(lines)
