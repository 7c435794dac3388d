"""The interface of a step, and the choice of one."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.contract import ImageSpec
from pipeline.recipes import Training
from pipeline.training.augment import Augment
from pipeline.training.batch_loader import BatchGroup, BatchLoader
from pipeline.training.requirements import step_name
from pipeline.training.schedule import Rate

OptimizerState = dict[int, dict[str, Tensor]]
"""The state of torch's optimizer for each parameter, by its index in the model."""


class GroupResult(NamedTuple):
    """This rank's loss and hits on a group of batches, each from before its batch's update."""

    losses: Tensor
    """Summed loss of each batch, float64 (batches,)."""
    correct: Tensor
    """Number of correct predictions, float64 ()."""


class TrainStep(Protocol):
    """Trains a model on all workers at once. A run may go on with another step."""

    def train(self, group: BatchGroup, first_step: int) -> GroupResult:
        """Take a step for each batch of the group.

        `first_step` is the number of the first, counted from the start of training.
        """

    def evaluate(self, group: BatchGroup) -> Tensor:
        """Return the summed loss and the number of correct predictions, float64 (2,)."""

    def is_finite(self) -> bool:
        """Return whether all parameters are finite numbers, the same on all workers."""

    def model_state(self) -> dict[str, Tensor]:
        """Return the model's `state_dict`; all workers must call it at once."""

    def optimizer_state(self) -> OptimizerState:
        """Return the state of torch's optimizer; all workers must call it at once."""

    def load(self, model: dict[str, Tensor], optimizer: OptimizerState) -> None:
        """Continue from these states, on any number of workers."""


def create_step(
    training: Training,
    image: ImageSpec,
    model: nn.Module,
    loader: BatchLoader,
    rate: Rate,
    augment: Augment | None,
    device: torch.device,
) -> TrainStep:
    """Return the step of these settings, which trains the model on batches of the loader."""
    is_float32 = all(p.dtype == torch.float32 for p in model.parameters())
    if step_name(training, device.type) == "textbook" or not is_float32:
        from pipeline.training.textbook_step import TextbookStep

        return TextbookStep(training, image, model, rate, augment, device)
    if device.type == "cpu":
        from pipeline.models.mlp import Mlp
        from pipeline.training.kernels.mlp_step import MlpStep

        assert isinstance(model, Mlp)
        return MlpStep(training, model, loader, rate, augment)
    from pipeline.training.kernels.graph_step import GraphStep

    return GraphStep(training, model, loader, rate, augment, device)
