"""Optimizers of one flat vector of parameters, given the vector of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class Optimizer(Protocol):
    """Updates a vector of parameters by its gradient, element by element.

    With several workers each has one for its own slice, so an element must not depend on others.
    """

    def step(self, rate: float) -> None:
        """Update the parameters with this learning rate."""

    steps: Tensor
    """Number of steps so far, float32 (): it decides AdamW's correction of bias."""

    def state(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint, by the names of torch's optimizer.

        The tensors have one number per parameter. To continue from a checkpoint, copy into them
        and into `steps`.
        """


class Sgd:
    """Plain stochastic gradient descent, without momentum or weight decay."""

    def __init__(self, parameters: Tensor, gradient: Tensor, *, weight_decay: float = 0.0) -> None:
        assert not weight_decay
        self._parameters, self._gradient = parameters, gradient
        self.steps = torch.zeros(())

    def step(self, rate: float) -> None:
        self._parameters.add_(self._gradient, alpha=-rate)

    def state(self) -> dict[str, Tensor]:
        return {}


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    It calls torch's fused function, because the bookkeeping of torch's class takes longer than the
    arithmetic on a vector of this size.
    """

    def __init__(self, parameters: Tensor, gradient: Tensor, *, weight_decay: float = 0.0) -> None:
        self._parameters, self._gradient = parameters, gradient
        self._mean, self._square = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self.steps = torch.zeros(())
        self._weight_decay = weight_decay

    def step(self, rate: float) -> None:
        adamw(
            [self._parameters],
            [self._gradient],
            [self._mean],
            [self._square],
            [],
            [self.steps],
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
        return {"exp_avg": self._mean, "exp_avg_sq": self._square}


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": Sgd, "adamw": AdamW}
"""Optimizers by name. To add one: add it here, and its name to `Training.optimizer`."""
