"""A network with random numbers and running averages, for --train.model."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.contract import ImageSpec
from pipeline.recipes import Training


class Noisy(nn.Module):
    """A network with state beside its weights, and with random numbers in each step."""

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.BatchNorm1d(image.num_pixels),
            nn.Dropout(0.2),
            nn.Linear(image.num_pixels, image.num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images.float() / 255)
        return logits


def noisy(image: ImageSpec, training: Training) -> nn.Module:
    """Return a network with batch normalization and dropout."""
    return Noisy(image)
