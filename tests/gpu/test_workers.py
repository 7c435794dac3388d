"""Several workers on one GPU, through Ray Train: gloo, because nccl needs a GPU for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.artifacts.storage import Storage
from pipeline.recipes import Training
from pipeline.training.ray_trainer import work
from pipeline.training.run_state import TrainJob
from tests.support.local_artifacts import write_dataset


def train(root: Path, workers: int, step: str) -> list[dict[str, float]]:
    """Train on so many workers that share one GPU; return the metrics."""
    storage = Storage(str(root))
    training = Training(epochs=2, batch_size=50, step=step)
    job = TrainJob(storage, write_dataset(storage, train=500), training, "runs/x", "cuda")
    share = {"CPU": 1, "GPU": 1 / workers}
    trainer: Any = TorchTrainer
    result = trainer(
        work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=True, resources_per_worker=share),
        run_config=RunConfig(name="x", storage_path=f"{root}/runs"),
    ).fit()
    metrics: list[dict[str, float]] = result.return_value["metrics"]
    return metrics


@pytest.mark.parametrize("step", ["textbook", "fast"])
def test_two_workers_on_one_gpu_train_as_one_does(
    ray_session: None, tmp_path: Path, step: str
) -> None:
    one, two = (train(tmp_path / str(workers), workers, step) for workers in (1, 2))
    for line, other in zip(one, two, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
