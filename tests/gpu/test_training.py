"""Training on a GPU: the graph, the bits, resuming, and the CPU's results."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.recipes import Training
from pipeline.training import batch_loader, checkpoints
from pipeline.training.checkpoints import TrainState
from pipeline.training.kernels.graph_step import GraphStep
from pipeline.training.run_state import TrainJob
from tests.pipeline.training.test_loop import FOLDER, rewind
from tests.support.local_artifacts import write_dataset
from tests.support.ranks import on_ranks

SETTINGS: dict[str, dict[str, Any]] = {
    "mlp sgd": {"optimizer": "sgd", "learning_rate": 0.01},
    "mlp adamw": {"deform": 0.5},
    "cnn": {"model": "cnn", "learning_rate": 0.003},
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def dataset(storage: Storage) -> DatasetManifest:
    return write_dataset(storage, rows_per_shard=100, train=1000)


def train(
    storage: Storage, dataset: DatasetManifest, device: str = "cuda", **settings: Any
) -> tuple[TrainState, dict[str, Any]]:
    """Train one rank from scratch; return its last state, and its result."""
    defaults = {"epochs": 3, "batch_size": 50}
    training = Training().model_copy(update={**defaults, **settings})
    job = TrainJob(storage, dataset, training, FOLDER, device)
    (result,) = on_ranks(1, train_in_small_groups, job, device=device)
    state = checkpoints.load_latest(storage, FOLDER, epochs=training.epochs)
    assert state
    return state, result


def train_in_small_groups(job: TrainJob) -> dict[str, Any]:
    """Train in groups of two batches; also return the number of graphs that ran."""
    batch_loader.GROUP_ROWS = 100
    checkpoints.MAX_CHECKPOINTS = 100
    steps = list[Any]()
    loop: Any = import_module("pipeline.training.loop")
    create_step = loop.create_step

    def create_and_keep(*arguments: Any) -> Any:
        steps.append(create_step(*arguments))
        return steps[-1]

    loop.create_step = create_and_keep
    result = loop.train_loop({"job": job})
    return {**result, "replays": getattr(steps[0], "replays", 0)}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_graph_computes_what_the_textbook_step_computes(
    storage: Storage, dataset: DatasetManifest, settings: dict[str, Any]
) -> None:
    graph, result = train(storage, dataset, **settings)
    assert result["replays"] >= 20, "of 30 groups of two batches"
    storage.delete_folder(FOLDER)
    textbook, other = train(storage, dataset, step="textbook", **settings)
    assert other["replays"] == 0
    torch.testing.assert_close(graph.model, textbook.model, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_same_gpu_computes_the_same_bits(
    storage: Storage, dataset: DatasetManifest, settings: dict[str, Any]
) -> None:
    train(storage, dataset, **settings)
    first = checkpoints.listed(storage, FOLDER)[0]
    storage.delete_folder(FOLDER)
    train(storage, dataset, **settings)
    assert checkpoints.listed(storage, FOLDER)[0] == first


def test_a_run_resumes_within_an_epoch_to_the_same_bits(
    storage: Storage, dataset: DatasetManifest
) -> None:
    settings: dict[str, Any] = {"deform": 0.5, "checkpoint_steps": 1}
    train(storage, dataset, **settings)
    last = rewind(storage, 12)
    train(storage, dataset, **settings)
    assert checkpoints.listed(storage, FOLDER)[0] == last


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_gpu_learns_what_a_cpu_learns(
    storage: Storage, dataset: DatasetManifest, precision: str
) -> None:
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01}
    gpu, result = train(storage, dataset, precision=precision, **settings)
    storage.delete_folder(FOLDER)
    cpu, other = train(storage, dataset, "cpu", **settings)
    tolerance = 1e-4 if precision == "fp32" else 0.05
    torch.testing.assert_close(gpu.model, cpu.model, rtol=tolerance, atol=tolerance)
    line, other_line = result["metrics"][-1], other["metrics"][-1]
    assert line["val_accuracy"] == pytest.approx(other_line["val_accuracy"], abs=0.02)


def test_a_streamed_split_trains_as_one_in_memory_learns(
    storage: Storage, dataset: DatasetManifest
) -> None:
    _, result = train(storage, dataset, memory_mib=0)
    assert result["metrics"][-1]["val_accuracy"] > 0.95


def sum_in_a_graph(root: str) -> dict[str, Any]:
    """Train with nccl's all-reduce of one rank within the graph; return replays and parameters."""
    parallel = GraphStep.__init__

    def always_parallel(step: GraphStep, *arguments: Any) -> None:
        parallel(step, *arguments)
        step.is_parallel = True

    GraphStep.__init__ = always_parallel  # type: ignore[method-assign,assignment]
    storage = Storage(root)
    dataset = write_dataset(storage, train=1000)
    training = Training(epochs=2, batch_size=50)
    job = TrainJob(storage, dataset, training, FOLDER, "cuda")
    result = train_in_small_groups(job)
    return {"replays": result["replays"], "backend": dist.get_backend()}


def test_nccl_sums_gradients_within_a_graph(tmp_path: Path) -> None:
    (result,) = on_ranks(1, sum_in_a_graph, str(tmp_path), device="cuda")
    assert result["backend"] == "nccl"
    assert result["replays"] >= 10
