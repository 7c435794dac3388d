"""One training step by hand: the matrix products of backpropagation, and little beside them.

The arithmetic is autograd's, to which a test holds it. What is saved is the graph, the allocations
and the passes over memory: results go into buffers made once, the scaling of pixels and of the
learning rate rides on a product, and plain SGD is the last product added to the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.contract import PIXEL_MAX
from pipeline.model import Mlp


class Layer(NamedTuple):
    """Views into a flat vector: weight float32 (inputs, units), bias float32 (units,)."""

    weight: Tensor
    bias: Tensor
    weight_t: Tensor


def flatten(model: Mlp) -> Tensor:
    """Moves all parameters of a model into one float32 vector, and leaves it views of that.

    One all-reduce and one optimizer step then serve them all. A weight lies there as (inputs,
    units), which the products of a step read faster than torch's (units, inputs).
    """
    vector = torch.cat([p.detach().t().flatten() for p in model.parameters()])
    sizes = [p.numel() for p in model.parameters()]
    for p, values in zip(model.parameters(), vector.split(sizes), strict=True):
        p.data = values.view(p.shape[::-1]).t()
    return vector


class Step:
    """Forward and backward of an Mlp whose parameters are one flat vector.

    Gradients are written to `gradient`, or, where that is the parameter vector itself, are added
    to it, each times the `factor` of the call.
    """

    def __init__(self, sizes: Sequence[int], parameters: Tensor, gradient: Tensor) -> None:
        """`sizes`: pixels, units of each hidden layer, classes."""
        self._sizes = tuple(sizes)
        self._layers = self._views(parameters)
        self._gradients = self._views(gradient)
        self._keep = 1 if gradient is parameters else 0
        self._buffers = dict[int, _Buffers]()

    def forward(self, images: Tensor, logits: Tensor) -> None:
        """Writes the logits float32 (N, classes) of images, raw pixels (N, height * width)."""
        inputs = self._of(len(images)).inputs
        inputs[0].copy_(images)
        scale = 1 / PIXEL_MAX
        for layer, below, out in zip(self._layers, inputs, (*inputs[1:], logits), strict=True):
            torch.addmm(layer.bias, below, layer.weight, alpha=scale, out=out)
            if out is not logits:
                out.relu_()
            scale = 1

    def __call__(self, images: Tensor, targets: Tensor, logits: Tensor, factor: float) -> None:
        """`forward`, then the gradients of the cross-entropy, summed over N, times `factor`.

        `targets` are probabilities float32 (N, classes). A hidden layer's buffer turns into the
        slope of its relu once it is not needed any more; a layer below is served before its weights
        change.
        """
        self.forward(images, logits)
        buffers = self._of(len(images))
        # Softmax goes over the first axis, 5 times as fast as over a short last one.
        buffers.logits_t.copy_(logits.t())
        torch.softmax(buffers.logits_t, 0, out=buffers.error_t)
        buffers.error_t.sub_(targets.t())
        error, error_t = buffers.error_t.t(), buffers.error_t
        for number in reversed(range(len(self._layers))):
            weight, bias, _ = self._gradients[number]
            below_t, alpha = buffers.inputs_t[number], factor if number else factor / PIXEL_MAX
            if number:
                below, error_below = buffers.inputs[number], buffers.errors[number]
                torch.mm(error, self._layers[number].weight_t, out=error_below)
            torch.addmm(weight, below_t, error, beta=self._keep, alpha=alpha, out=weight)
            torch.addmv(bias, error_t, buffers.ones, beta=self._keep, alpha=factor, out=bias)
            if number:
                error, error_t = error_below.mul_(below.sign_()), buffers.errors_t[number]

    def _views(self, vector: Tensor) -> list[Layer]:
        shapes = list(zip(self._sizes[:-1], self._sizes[1:], strict=True))
        parts = iter(vector.split([size for n, m in shapes for size in (n * m, m)]))
        layers = []
        for n, m in shapes:
            weight = next(parts).view(n, m)
            layers.append(Layer(weight, next(parts), weight.t()))
        return layers

    def _of(self, rows: int) -> _Buffers:
        if (buffers := self._buffers.get(rows)) is None:
            like = self._layers[0].weight
            buffers = self._buffers[rows] = _Buffers(self._sizes, rows, like)
        return buffers


class _Buffers:
    """Room for what a step on so many rows computes; `_t` are transposed views."""

    def __init__(self, sizes: tuple[int, ...], rows: int, like: Tensor) -> None:
        *widths, classes = sizes
        self.inputs = [like.new_empty(rows, width) for width in widths]
        self.inputs_t = [tensor.t() for tensor in self.inputs]
        self.errors = [like.new_empty(rows, width) for width in widths]
        self.errors_t = [tensor.t() for tensor in self.errors]
        self.logits_t = like.new_empty(classes, rows)
        self.error_t = like.new_empty(classes, rows)
        self.ones = like.new_ones(rows)
