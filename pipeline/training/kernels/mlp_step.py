"""The fast step: it trains an Mlp on CPUs, in float32, and nothing else.

It stands in for autograd, DistributedDataParallel and torch.optim, whose overhead is several times
the arithmetic of a network of this size. The other modules of `kernels` are its parts. Tests
compare each with torch, and the whole with the textbook's step.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.models.mlp import Mlp
from pipeline.recipes import Training
from pipeline.training.augment import Augment
from pipeline.training.batch_loader import BatchGroup, BatchLoader
from pipeline.training.kernels import vectors
from pipeline.training.kernels.gradient_sync import create_gradient_sync
from pipeline.training.kernels.manual_step import ManualStep
from pipeline.training.kernels.optimizers import OPTIMIZERS
from pipeline.training.schedule import Rate
from pipeline.training.steps import GroupResult, OptimizerState


class MlpStep:
    """Trains one vector that holds the parameters, but for the weights of pixels left out.

    The weights of a pixel that is 0 in all images have no gradient and never change, unless
    augmentation moves ink there or weight decay shrinks them.
    """

    @torch.inference_mode()
    def __init__(
        self,
        training: Training,
        model: Mlp,
        loader: BatchLoader,
        rate: Rate,
        augment: Augment | None,
    ) -> None:
        self._model, self._rate, self._augment = model, rate, augment
        self._parameters = vectors.flatten(model)
        num_pixels, *units = model.sizes
        self._num_classes = units[-1]
        pixels = torch.arange(num_pixels)
        if not (augment or training.weight_decay):
            pixels = loader.drop_zero_pixels()
        self._positions = vectors.positions(model.sizes, pixels)
        self._sync = create_gradient_sync(self._parameters[self._positions])
        self._trained = self._sync.parameters
        self._optimizer = OPTIMIZERS[training.optimizer](
            self._trained[self._sync.own_slice],
            self._sync.reduced,
            weight_decay=training.weight_decay,
        )
        # One worker with plain SGD needs no gradient: the last product of the backward pass adds
        # it to the parameters.
        self._fused_sgd = dist.get_world_size() == 1 and training.optimizer == "sgd"
        self._backward = ManualStep(
            (len(pixels), *units),
            self._trained,
            self._trained if self._fused_sgd else self._sync.gradient,
        )
        # Evaluation uses the forward pass alone, so this gradient is never written.
        self._network = ManualStep(model.sizes, self._parameters, gradient=self._parameters)

    @torch.inference_mode()
    def train(self, group: BatchGroup, first_step: int) -> GroupResult:
        # One-hot targets. Columns are rows of the batches, as `ManualStep` explains.
        targets = torch.zeros(self._num_classes, len(group.labels))
        targets.scatter_(0, group.labels[None], 1.0)
        logits = torch.empty_like(targets)
        batches = zip(
            group.slices,
            group.images.flatten(1).split(group.rows),
            targets.split(group.rows, 1),
            logits.split(group.rows, 1),
            strict=True,
        )
        for number, (rank_slice, images, target, out) in enumerate(batches, first_step):
            if self._augment:
                noise = self._augment.draw(number, rank_slice.total)
                images = self._augment(images, rank_slice, noise)
            self._step(images, target, out, rank_slice.total, self._rate(number))
        losses, correct = losses_and_correct(logits, group.labels)
        by_batch = [batch.sum(dtype=torch.float64) for batch in losses.split(group.rows)]
        return GroupResult(torch.stack(by_batch), correct)

    def _step(
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

    @torch.inference_mode()
    def evaluate(self, group: BatchGroup) -> Tensor:
        self._publish()
        logits = torch.empty(self._num_classes, len(group.labels))
        batches = zip(
            group.images.flatten(1).split(group.rows), logits.split(group.rows, 1), strict=True
        )
        for images, out in batches:
            self._network.forward(images, out)
        losses, correct = losses_and_correct(logits, group.labels)
        return torch.stack([losses.sum(dtype=torch.float64), correct])

    def is_finite(self) -> bool:
        return bool(self._trained.sum().isfinite())

    @torch.inference_mode()
    def model_state(self) -> dict[str, Tensor]:
        self._publish()
        return self._model.state_dict()

    @torch.inference_mode()
    def optimizer_state(self) -> OptimizerState:
        by_name = {name: self._sync.join(own) for name, own in self._optimizer.state().items()}
        state = OptimizerState()
        for name, trained in by_name.items():
            vector = torch.zeros_like(self._parameters)
            vector[self._positions] = trained
            for index, values in enumerate(vectors.split(vector, self._model)):
                state.setdefault(index, {"step": self._optimizer.steps.clone()})[name] = values
        return state

    @torch.inference_mode()
    def load(self, model: dict[str, Tensor], optimizer: OptimizerState) -> None:
        self._model.load_state_dict(model)
        self._trained.copy_(self._parameters[self._positions])
        for name, own in self._optimizer.state().items():
            parts = [optimizer[index][name] for index in sorted(optimizer)]
            own.copy_(vectors.join(parts)[self._positions][self._sync.own_slice])
        if optimizer:
            self._optimizer.steps.copy_(optimizer[0]["step"])

    def _publish(self) -> None:
        """Copy the trained values to the model's parameters."""
        self._parameters[self._positions] = self._trained


def losses_and_correct(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each row, float32 (N,), and the number of correct predictions, float64 ().

    Logits are float32 (classes, N). A prediction is correct if the label's logit is larger than
    those of all other classes.
    """
    label_logits = logits.gather(0, labels[None])
    losses = (logits.logsumexp(0) - label_logits)[0]
    # Count logits >= the label's, as floats: 7 times as fast as an argmax along columns.
    num_as_large = torch.ge(logits, label_logits, out=torch.empty_like(logits)).sum(0)
    return losses, (num_as_large == 1).sum(dtype=torch.float64)
