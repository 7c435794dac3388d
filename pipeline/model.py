"""The MLP, its table and its graph: the one definition that training, export and `show` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.contract import INPUT, PIXEL_MAX, PREDICTION, PROBABILITIES, ImageSpec

BYTES_PER_PARAMETER = 4


class Mlp(nn.Module):
    """Raw pixels to logits: scale, flatten, then dense layers with relu between them.

    Weights are Glorot uniform (Glorot and Bengio 2010, eq. 16), biases zero, as Axon's defaults.
    """

    def __init__(self, image: ImageSpec, hidden_sizes: Sequence[int], *, seed: int = 0) -> None:
        super().__init__()
        sizes = [image.num_pixels, *hidden_sizes, image.num_classes]
        self.layers = nn.ModuleList(
            nn.Linear(n, m) for n, m in zip(sizes[:-1], sizes[1:], strict=True)
        )
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (N, classes) of images uint8 (N, height, width)."""
        x = images.flatten(1).to(torch.float32) / PIXEL_MAX
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits


class Classifier(nn.Module):
    """An Mlp with the outputs of the contract: probabilities and prediction."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """probabilities float32 (N, classes), prediction int64 (N,), of uint8 images."""
        probabilities = torch.softmax(self.mlp(image), dim=-1)
        return probabilities, probabilities.argmax(-1)


class Row(NamedTuple):
    """A layer in the table of a model; shapes are for a batch of one."""

    layer: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int


def table(image: ImageSpec, hidden_sizes: Sequence[int]) -> list[Row]:
    """The layers of an Mlp in order, each with its shapes and number of parameters."""
    flat = (1, image.num_pixels)
    rows = [Row("scale, flatten", (1, *image.shape), flat, 0)]
    sizes = [*hidden_sizes, image.num_classes]
    before = image.num_pixels
    for number, units in enumerate(sizes):
        shape = (1, units)
        rows.append(Row(f"dense_{number}", (1, before), shape, before * units + units))
        activation = "softmax" if number == len(hidden_sizes) else "relu"
        rows.append(Row(f"{activation}_{number}", shape, shape, 0))
        before = units
    return rows


def num_parameters(rows: Sequence[Row]) -> int:
    """Parameters of all layers; times BYTES_PER_PARAMETER is their memory."""
    return sum(row.parameters for row in rows)


def graph(rows: Sequence[Row]) -> str:
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
