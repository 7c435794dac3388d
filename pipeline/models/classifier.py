"""A network with the outputs of an exported model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A network that returns probabilities and the predicted class in place of logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities, float32 (N, classes), and predictions, int64 (N,).

        `image` holds N images: uint8 (N, height, width).
        """
        probabilities = torch.softmax(self.network(image), dim=-1)
        return probabilities, probabilities.argmax(-1)
