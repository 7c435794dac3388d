"""A small convolutional network from raw pixels to logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.contract import PIXEL_MAX, ImageSpec

CHANNELS = (16, 32)


class Cnn(nn.Module):
    """Scales pixels to 0..1, then twice a 3 x 3 convolution, ReLU and pooling, then a dense layer.

    Pooling halves height and width and rounds up, so images may be as small as one pixel.
    """

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        first, second = CHANNELS
        self.conv_0 = nn.Conv2d(1, first, 3, padding=1)
        self.conv_1 = nn.Conv2d(first, second, 3, padding=1)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        height, width = math.ceil(image.height / 4), math.ceil(image.width / 4)
        self.dense = nn.Linear(second * height * width, image.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 (N, classes), of images, uint8 (N, height, width)."""
        x = images.unsqueeze(1).to(torch.float32) / PIXEL_MAX
        for conv in (self.conv_0, self.conv_1):
            x = self.pool(torch.relu(conv(x)))
        logits: Tensor = self.dense(x.flatten(1))
        return logits
