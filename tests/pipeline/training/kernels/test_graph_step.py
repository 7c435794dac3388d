"""The step that is a CUDA graph on GPUs, here without a graph. tests/gpu tests it with one."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts.storage import Storage
from pipeline.models.factory import create_model
from pipeline.recipes import Training
from pipeline.training.augment import Augment
from pipeline.training.batch_loader import BatchLoader
from pipeline.training.kernels.graph_step import GraphStep
from pipeline.training.schedule import learning_rate
from pipeline.training.steps import TrainStep
from pipeline.training.textbook_step import TextbookStep
from tests.support.local_artifacts import write_dataset
from tests.support.ranks import on_ranks

pytestmark = pytest.mark.ray

EPOCHS = 3

SETTINGS: dict[str, dict[str, Any]] = {
    "mlp": {"optimizer": "sgd", "learning_rate": 0.01},
    "augmented": {"deform": 0.5},
    "cnn": {"model": "cnn", "learning_rate": 0.003},
    "bf16": {"precision": "bf16", "learning_rate": 0.001},
}


def train_both(root: str, training: Training) -> list[dict[str, Any]]:
    """Train with each step on this rank; return its losses, parameters and evaluation."""
    storage, device = Storage(root), torch.device("cpu")
    dataset = write_dataset(storage, train=500)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    loader = BatchLoader(
        storage,
        dataset,
        "train",
        order="shuffled",
        batch_size=training.batch_size,
        memory_bytes=1 << 30,
        device=device,
        rank=rank,
        world_size=world_size,
        seed=0,
    )
    image, rate = dataset.image, learning_rate("one-cycle", steps=30, peak=0.01)
    augment = Augment(*image.shape, training.deform, 0, device) if training.deform else None
    results = []
    for is_graph in (False, True):
        model = create_model(image, training)
        step: TrainStep
        if is_graph:
            step = GraphStep(training, model, loader, rate, augment, device)
        else:
            step = TextbookStep(training, image, model, rate, augment, device)
        losses = list[torch.Tensor]()
        for epoch in range(EPOCHS):
            # As a run that is resumed.
            step.load(deepcopy(step.model_state()), deepcopy(step.optimizer_state()))
            number = epoch * 10
            for group in loader.epoch(epoch):
                losses.append(step.train(group, number).losses)
                number += len(group.slices)
        evaluation = torch.stack([step.evaluate(group) for group in loader.epoch()]).sum(0)
        state = {**step.model_state(), "evaluation": evaluation, "losses": torch.cat(losses)}
        state |= {
            f"{index} {name}": tensor
            for index, tensors in step.optimizer_state().items()
            for name, tensor in tensors.items()
            if tensor is not None
        }
        results.append({name: tensor.clone() for name, tensor in state.items()})
    return results


@pytest.mark.parametrize(
    ("name", "world_size"), [("mlp", 2), ("augmented", 1), ("cnn", 2), ("bf16", 1)]
)
def test_it_computes_what_the_textbook_step_computes(
    tmp_path: Path, name: str, world_size: int
) -> None:
    training = Training(batch_size=50, **SETTINGS[name])
    for textbook, graph in on_ranks(world_size, train_both, str(tmp_path), training):
        tolerance = 1e-2 if training.precision == "bf16" else 1e-4
        torch.testing.assert_close(graph, textbook, rtol=tolerance, atol=tolerance / 10)
