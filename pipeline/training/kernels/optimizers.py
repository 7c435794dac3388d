"""The optimizers of a flat vector of parameters and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class Sgd:
    """Plain stochastic gradient descent, without momentum."""

    def __init__(self, parameters: Tensor, gradient: Tensor) -> None:
        self._parameters, self._gradient = parameters, gradient

    def step(self, rate: float) -> None:
        self._parameters.add_(self._gradient, alpha=-rate)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: nothing."""
        return {}


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), torch's function.

    Not its class, whose bookkeeping costs more than the arithmetic on a vector of this size.
    """

    def __init__(
        self, parameters: Tensor, gradient: Tensor, *, weight_decay: float, steps: int = 0
    ) -> None:
        """`steps`: how many were taken before."""
        self._parameters, self._gradient = parameters, gradient
        self._mean, self._square = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self._steps = torch.tensor(float(steps), device=gradient.device)
        self._weight_decay = weight_decay

    def step(self, rate: float) -> None:
        adamw(
            [self._parameters],
            [self._gradient],
            [self._mean],
            [self._square],
            [],
            [self._steps],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=self._weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, a number a parameter; copied into to go on from one."""
        return {"mean": self._mean, "square": self._square}
