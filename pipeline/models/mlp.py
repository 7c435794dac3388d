"""A multilayer perceptron from raw pixels to logits: the network of the tutorial."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.contract import PIXEL_MAX, ImageSpec


class Mlp(nn.Module):
    """A multilayer perceptron: scales pixels to 0..1, then dense layers with ReLU between them.

    Weights start Glorot uniform (Glorot and Bengio 2010, eq. 16) and biases zero, as in Axon.
    """

    def __init__(self, image: ImageSpec, hidden_sizes: Sequence[int], *, seed: int = 0) -> None:
        super().__init__()
        self.sizes = sizes = (image.num_pixels, *hidden_sizes, image.num_classes)
        self.layers = nn.ModuleList(
            nn.Linear(n, m) for n, m in zip(sizes[:-1], sizes[1:], strict=True)
        )
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 (N, classes), of images, uint8 (N, height, width)."""
        x = images.flatten(1).to(torch.float32) / PIXEL_MAX
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits
