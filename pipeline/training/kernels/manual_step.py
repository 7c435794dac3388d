"""One training step by hand: the matrix products of backpropagation, and little beside them.

The arithmetic is autograd's, to which a test holds it. What is saved is the graph, the allocations
and the passes over memory: results go into buffers made once; a bias is the last row of its weight,
read by a constant column of the layer's input; the scaling of pixels and of the learning rate rides
on a product; and plain SGD is the last product added to the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.contract import PIXEL_MAX
from pipeline.models.mlp import Mlp

ALIGNED = 16

_relu_backward = torch.ops.aten.threshold_backward.grad_input


class Layer(NamedTuple):
    """A view into a flat vector, float32 (inputs + 1, units), and views of that."""

    whole: Tensor
    whole_t: Tensor
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


def positions(sizes: Sequence[int], pixels: Tensor) -> Tensor:
    """Where the vector of `flatten` holds what is left of a network that sees these pixels only.

    `sizes` are those of the whole network, as for `Step`; int64, both.
    """
    units = sizes[1]
    rows = torch.cat([pixels, torch.tensor([sizes[0]])])
    first = rows[:, None] * units + torch.arange(units)
    end = sum((n + 1) * m for n, m in zip(sizes[:-1], sizes[1:], strict=True))
    return torch.cat([first.flatten(), torch.arange((sizes[0] + 1) * units, end)])


class ManualStep:
    """Forward and backward of an Mlp whose parameters are one flat vector.

    Gradients are written to `gradient`, or, where that is the parameter vector itself, are added
    to it, each times the `factor` of the call. Logits and targets are columns, (classes, N), over
    which a softmax is 5 times as fast as over short rows.
    """

    def __init__(self, sizes: Sequence[int], parameters: Tensor, gradient: Tensor) -> None:
        """`sizes`: pixels, units of each hidden layer, classes."""
        self._sizes = tuple(sizes)
        self._layers = self._views(parameters)
        self._gradients = self._views(gradient)
        self._keep = 1 if gradient is parameters else 0
        self._buffers = dict[int, _Buffers]()

    def forward(self, images: Tensor, logits: Tensor) -> None:
        """Writes the logits float32 (classes, N) of images, raw pixels (N, height * width)."""
        self._forward(self._of(len(images)), images, logits)

    def __call__(self, images: Tensor, targets: Tensor, logits: Tensor, factor: float) -> None:
        """`forward`, then the gradients of the cross-entropy, summed over N, times `factor`.

        `targets` are probabilities float32 (classes, N). A layer below gets its error before the
        weights between change.
        """
        buffers = self._of(len(images))
        self._forward(buffers, images, logits)
        torch.softmax(logits, 0, out=buffers.error_t).sub_(targets)
        error = buffers.error
        for into, layer, below in buffers.above_pixels:
            error_below = torch.mm(error, layer.weight_t, out=below.error)
            torch.addmm(into, below.whole_t, error, beta=self._keep, alpha=factor, out=into)
            error = _relu_backward(error_below, below.values, 0, grad_input=error_below)
        into, alpha = self._gradients[0].whole, factor / PIXEL_MAX
        torch.addmm(into, buffers.pixels.whole_t, error, beta=self._keep, alpha=alpha, out=into)

    def _forward(self, buffers: _Buffers, images: Tensor, logits: Tensor) -> None:
        buffers.pixels.values.copy_(images)
        scale = 1 / PIXEL_MAX
        for layer, below, out in buffers.hidden:
            torch.addmm(out, below.whole, layer.whole, beta=0, alpha=scale, out=out).relu_()
            scale = 1
        last, below = self._layers[-1], buffers.last
        torch.addmm(logits, last.whole_t, below.whole_t, beta=0, alpha=scale, out=logits)

    def _views(self, vector: Tensor) -> list[Layer]:
        shapes = [(n + 1, m) for n, m in zip(self._sizes[:-1], self._sizes[1:], strict=True)]
        parts = vector.split([n * m for n, m in shapes])
        wholes = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return [Layer(whole, whole.t(), whole[:-1].t()) for whole in wholes]

    def _of(self, rows: int) -> _Buffers:
        if (buffers := self._buffers.get(rows)) is None:
            buffers = _Buffers(self._sizes, rows, self._layers, self._gradients)
            self._buffers[rows] = buffers
        return buffers


class _Input:
    """Room for the input of a layer, its rows aligned, and for what comes back to it."""

    def __init__(self, rows: int, width: int, constant: float, like: Tensor) -> None:
        stride = -(-(width + 1) // ALIGNED) * ALIGNED
        self.whole = like.new_zeros(rows, stride)[:, : width + 1]
        self.whole[:, -1] = constant
        self.whole_t = self.whole.t()
        self.values = self.whole[:, :-1]
        self.error = like.new_empty(rows, width)


class _Buffers:
    """Room for what a step on so many rows computes, and the layers in the order of its passes."""

    def __init__(
        self, sizes: tuple[int, ...], rows: int, layers: list[Layer], gradients: list[Layer]
    ) -> None:
        pixels, *hidden, classes = sizes
        like = layers[0].whole
        # The constant column is scaled with the pixels.
        self.pixels = _Input(rows, pixels, PIXEL_MAX, like)
        inputs = [self.pixels, *(_Input(rows, units, 1, like) for units in hidden)]
        self.last = inputs[-1]
        outs = [above.values for above in inputs[1:]]
        self.hidden = list(zip(layers, inputs, outs, strict=False))
        above = zip([g.whole for g in gradients], layers, inputs, strict=True)
        self.above_pixels = list(above)[:0:-1]
        self.error_t = like.new_empty(classes, rows)
        self.error = self.error_t.t()
