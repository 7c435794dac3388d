"""One step of data-parallel training: gradients of this rank's rows, their sum, the update.

It stands in for autograd, DistributedDataParallel and torch.optim, whose overhead is several times
the arithmetic of a network of this size. `kernels` holds its parts; tests compare each with torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from pipeline.recipes import Training
from pipeline.training.kernels.gradient_sync import GradientSync
from pipeline.training.kernels.manual_step import ManualStep, positions
from pipeline.training.kernels.optimizers import OPTIMIZERS


class ParallelStep:
    """Trains the parameters of an Mlp, one global batch after the other, on all workers at once.

    It trains a vector of its own: the parameters without the first layer's weights of the pixels
    left out. `publish` copies that vector to the model's parameters.
    """

    def __init__(
        self,
        training: Training,
        sizes: Sequence[int],
        parameters: Tensor,
        pixels: Tensor,
        *,
        num_steps: int,
    ) -> None:
        """Prepare to train `parameters`, the vector of `flatten`, on these pixels, int64 indices.

        `sizes` are pixels, units of each hidden layer, classes. `num_steps` counts earlier steps.
        """
        self._parameters = parameters
        self._positions = positions(sizes, pixels).to(parameters.device)
        self._sync = GradientSync(parameters[self._positions])
        self._trained = self._sync.parameters
        self._optimizer = OPTIMIZERS[training.optimizer](
            self._trained[self._sync.own_slice],
            self._sync.reduced,
            weight_decay=training.weight_decay,
            steps=num_steps,
        )
        # One worker with plain SGD needs no gradient: the last product of the backward pass adds
        # it to the parameters.
        self._fused_sgd = dist.get_world_size() == 1 and training.optimizer == "sgd"
        self._backward = ManualStep(
            (len(pixels), *sizes[1:]),
            self._trained,
            self._trained if self._fused_sgd else self._sync.gradient,
        )

    def __call__(
        self, images: Tensor, targets: Tensor, logits: Tensor, batch_size: int, rate: float
    ) -> None:
        """Take a step on a global batch of `batch_size` rows, of which `images` are this rank's.

        Images (rows, pixels), raw pixels; targets, probabilities float32 (classes, rows). The
        logits before the update are written to `logits`, float32 (classes, rows).
        """
        if self._fused_sgd:
            self._backward(images, targets, logits, -rate / batch_size)
            return
        # Each rank sums over its rows and divides by the size of the global batch. The sum over
        # ranks is then the gradient of the mean, even if the ranks' numbers of rows differ.
        self._backward(images, targets, logits, 1 / batch_size)
        self._sync.reduce()
        self._optimizer.step(rate)
        self._sync.all_gather()

    def is_finite(self) -> bool:
        """Return whether all parameters are finite numbers, the same on all workers."""
        return bool(self._trained.sum().isfinite())

    def publish(self) -> None:
        """Copy the trained values to the model's parameters."""
        self._parameters[self._positions] = self._trained

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer's state of all parameters; all workers must call it at once."""
        return {name: self._sync.join(own) for name, own in self._optimizer.state().items()}

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """Continue from the state that `optimizer_state` returned, on any number of workers."""
        for name, own in self._optimizer.state().items():
            own.copy_(state[name][self._sync.own_slice])
