"""The parameters of an Mlp as one float32 vector, which a single update and a single sum serve.

The vector holds a weight as (inputs, units), which the products of a step read faster than torch's
(units, inputs), and the bias after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.models.mlp import Mlp


def flatten(model: Mlp) -> Tensor:
    """Move all parameters of a model into one vector; the model's become views of it."""
    vector = join([p.detach() for p in model.parameters()])
    for p, values in zip(model.parameters(), split(vector, model), strict=True):
        p.data = values
    return vector


def join(parameters: Sequence[Tensor]) -> Tensor:
    """Return the vector of parameters, in the order and shapes of the model's."""
    return torch.cat([p.t().flatten() for p in parameters])


def split(vector: Tensor, model: Mlp) -> list[Tensor]:
    """Return views of a vector, in the order and shapes of the model's parameters."""
    shapes = [p.shape for p in model.parameters()]
    parts = vector.split([shape.numel() for shape in shapes])
    return [part.view(shape[::-1]).t() for part, shape in zip(parts, shapes, strict=True)]


def positions(sizes: Sequence[int], pixels: Tensor) -> Tensor:
    """Return the positions of all parameters in the vector, but for pixels left out.

    `sizes` are pixels, units of each hidden layer, classes; `pixels` are the indices kept. Both the
    argument and the result are int64.
    """
    units = sizes[1]
    bias_row = torch.tensor([sizes[0]])
    rows = torch.cat([pixels, bias_row])
    first_layer = rows[:, None] * units + torch.arange(units)
    num_parameters = sum((n + 1) * m for n, m in zip(sizes[:-1], sizes[1:], strict=True))
    return torch.cat([first_layer.flatten(), torch.arange((sizes[0] + 1) * units, num_parameters)])
