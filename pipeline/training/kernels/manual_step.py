"""The forward and backward pass of an Mlp, written out as matrix products.

The numbers are those of autograd, as a test checks. The graph, the allocations and most passes over
memory are saved:

- Results are written to buffers that are allocated once per number of rows.
- A bias is the last row of its layer's weight, and each layer's input has a constant last column:
  one product computes x W + b, and one computes the gradients of both.
- The scaling of pixels and of the learning rate is the factor `alpha` of a product.
- With plain SGD, the last product of a layer adds its gradient to the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.contract import PIXEL_MAX

ALIGNED_FLOATS = 16
"""Rows of a buffer begin at a multiple of this: a cache line of 64 bytes."""

_relu_backward = torch.ops.aten.threshold_backward.grad_input


class Layer(NamedTuple):
    """A layer in a flat vector: views of it, so that a step creates none."""

    whole: Tensor
    """Weight, and the bias as the last row: float32 (inputs + 1, units)."""
    whole_t: Tensor
    """The same, transposed: (units, inputs + 1)."""
    weight_t: Tensor
    """The weight alone, transposed: (units, inputs)."""


class ManualStep:
    """Forward and backward pass of an Mlp whose parameters are one flat vector.

    Gradients, times the `factor` of a call, are written to `gradient`. If that is the parameter
    vector itself, they are added to it. Logits and targets are (classes, N), over which a softmax
    is 5 times as fast as over the short rows of (N, classes).
    """

    def __init__(self, sizes: Sequence[int], parameters: Tensor, gradient: Tensor) -> None:
        """Prepare for a network of these sizes: pixels, units of each hidden layer, classes."""
        self._sizes = tuple(sizes)
        self._layers = self._views(parameters)
        self._gradients = self._views(gradient)
        # The factor `beta` by which a product keeps what its output held before.
        self._beta = 1 if gradient is parameters else 0
        self._buffers = dict[int, _Buffers]()

    def forward(self, images: Tensor, logits: Tensor) -> None:
        """Write the logits, float32 (classes, N), of images, raw pixels (N, pixels)."""
        self._forward(self._buffers_for(len(images)), images, logits)

    def __call__(self, images: Tensor, targets: Tensor, logits: Tensor, factor: float) -> None:
        """Write the logits, and the gradients of the cross-entropy, summed over N, times `factor`.

        `targets` are probabilities, float32 (classes, N).
        """
        buffers = self._buffers_for(len(images))
        self._forward(buffers, images, logits)
        # The gradient of the cross-entropy with respect to the logits.
        torch.softmax(logits, 0, out=buffers.error_t).sub_(targets)
        error = buffers.error
        for gradient, layer, below in buffers.backward:
            # The layer below needs the weights from before this layer's update.
            error_below = torch.mm(error, layer.weight_t, out=below.error)
            torch.addmm(gradient, below.whole_t, error, beta=self._beta, alpha=factor, out=gradient)
            error = _relu_backward(error_below, below.values, 0, grad_input=error_below)
        gradient, alpha = self._gradients[0].whole, factor / PIXEL_MAX
        pixels_t = buffers.pixels.whole_t
        torch.addmm(gradient, pixels_t, error, beta=self._beta, alpha=alpha, out=gradient)

    def _forward(self, buffers: _Buffers, images: Tensor, logits: Tensor) -> None:
        buffers.pixels.values.copy_(images)
        alpha = 1 / PIXEL_MAX
        for layer, below, out in buffers.forward:
            torch.addmm(out, below.whole, layer.whole, beta=0, alpha=alpha, out=out).relu_()
            alpha = 1
        last, below = self._layers[-1], buffers.last
        torch.addmm(logits, last.whole_t, below.whole_t, beta=0, alpha=alpha, out=logits)

    def _views(self, vector: Tensor) -> list[Layer]:
        """Return the layers of a vector in the layout of `vectors.flatten`."""
        shapes = [(n + 1, m) for n, m in zip(self._sizes[:-1], self._sizes[1:], strict=True)]
        flat_layers = vector.split([n * m for n, m in shapes])
        wholes = [flat.view(shape) for flat, shape in zip(flat_layers, shapes, strict=True)]
        return [Layer(whole, whole.t(), whole[:-1].t()) for whole in wholes]

    def _buffers_for(self, rows: int) -> _Buffers:
        buffers = self._buffers.get(rows)
        if buffers is None:
            buffers = _Buffers(self._sizes, rows, self._layers, self._gradients)
            self._buffers[rows] = buffers
        return buffers


class _LayerInput:
    """Buffers for the input of a layer, float32, and for the error that comes back to it."""

    def __init__(self, rows: int, width: int, constant: float, like: Tensor) -> None:
        stride = -(-(width + 1) // ALIGNED_FLOATS) * ALIGNED_FLOATS
        self.whole = like.new_zeros(rows, stride)[:, : width + 1]
        self.whole[:, -1] = constant
        self.whole_t = self.whole.t()
        self.values = self.whole[:, :-1]
        self.error = like.new_empty(rows, width)


class _Buffers:
    """The buffers of a step on `rows` rows, and the layers in the order of both passes."""

    def __init__(
        self, sizes: tuple[int, ...], rows: int, layers: list[Layer], gradients: list[Layer]
    ) -> None:
        pixels, *hidden, classes = sizes
        like = layers[0].whole
        # The first product divides by PIXEL_MAX, the constant of the bias too.
        self.pixels = _LayerInput(rows, pixels, PIXEL_MAX, like)
        inputs = [self.pixels, *(_LayerInput(rows, units, 1, like) for units in hidden)]
        self.last = inputs[-1]
        outputs = [layer_input.values for layer_input in inputs[1:]]
        # Hidden layers from the first to the last: layer, its input, its output.
        self.forward = list(zip(layers, inputs, outputs, strict=False))
        # Layers from the last to the second: gradient, layer, its input.
        all_layers = list(zip([g.whole for g in gradients], layers, inputs, strict=True))
        self.backward = all_layers[:0:-1]
        self.error_t = like.new_empty(classes, rows)
        self.error = self.error_t.t()
