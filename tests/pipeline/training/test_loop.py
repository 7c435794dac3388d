from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F

from pipeline.data import shards
from pipeline.models.mlp import Mlp
from pipeline.recipes import RECIPES, Training
from pipeline.training import loop
from pipeline.training.kernels.optimizers import OPTIMIZERS
from pipeline.training.loop import Diverged, Worker
from pipeline.training.run_state import TrainJob
from pipeline.training.schedule import SCHEDULES, learning_rate
from tests.conftest import TRAINING, Artifacts
from tests.support.ranks import on_ranks

TUTORIAL = RECIPES["tutorial"].model_copy(update={"batch_size": 47, "device": "cpu"})
EPOCHS = 3


def make_job(artifacts: Artifacts, training: Training) -> TrainJob:
    return TrainJob(artifacts.storage, artifacts.dataset, training, "runs/none", "cpu")


def epochs(job: TrainJob, count: int = EPOCHS) -> dict[str, Any]:
    """Train some epochs; return the parameters, and the metrics of the last epoch."""
    worker = Worker(job)
    for _ in range(count):
        metrics = worker.run_epoch()
    return {"parameters": worker.parameters, "metrics": metrics}


def diverged(job: TrainJob) -> tuple[int, int]:
    with pytest.raises(Diverged) as error:
        epochs(job)
    epoch, step = error.value.args
    return epoch, step


@pytest.mark.parametrize(
    ("optimizer", "memory_mib"), [("sgd", 1), ("adamw", 1), ("sgd", 0)], ids=str
)
def test_several_workers_compute_what_one_computes(
    artifacts: Artifacts, optimizer: str, memory_mib: int
) -> None:
    """Train in memory, and streamed if no memory is allowed."""
    update = {"optimizer": optimizer, "memory_mib": memory_mib, "deform": 0.5}
    job = make_job(artifacts, TUTORIAL.model_copy(update=update))
    (alone,) = on_ranks(1, epochs, job)
    for world_size in (2, 4):
        ranks = on_ranks(world_size, epochs, job)
        for rank in ranks:
            torch.testing.assert_close(rank["parameters"], ranks[0]["parameters"], rtol=0, atol=0)
        torch.testing.assert_close(
            ranks[0]["parameters"], alone["parameters"], rtol=1e-4, atol=1e-5
        )
        assert ranks[0]["metrics"]["val_accuracy"] == alone["metrics"]["val_accuracy"]
        assert ranks[0]["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-5)
    second = on_ranks(4, epochs, job)[0]
    torch.testing.assert_close(second["parameters"], ranks[0]["parameters"], rtol=0, atol=0)


def test_the_recipe_tutorial_is_plain_sgd_in_file_order(artifacts: Artifacts) -> None:
    split = shards.read_split(artifacts.storage, artifacts.dataset, "train")
    model = Mlp(artifacts.dataset.image, TUTORIAL.hidden_sizes, seed=TUTORIAL.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=TUTORIAL.learning_rate)
    for _ in range(EPOCHS):
        for images, labels in zip(
            torch.from_numpy(split.images).split(TUTORIAL.batch_size),
            torch.from_numpy(split.labels).long().split(TUTORIAL.batch_size),
            strict=True,
        ):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    expected = torch.cat([p.detach().t().flatten() for p in model.parameters()])
    (trained,) = on_ranks(1, epochs, make_job(artifacts, TUTORIAL))
    torch.testing.assert_close(trained["parameters"], expected)


def test_validation_counts_each_example_once(artifacts: Artifacts) -> None:
    job = make_job(artifacts, TRAINING)
    (alone,) = on_ranks(1, validate, job)
    for world_size in (2, 3):
        ranks = on_ranks(world_size, validate, job)
        for rows, totals in alone.items():
            of_ranks = [rank[rows] for rank in ranks]
            assert sum(rank["rows"] for rank in of_ranks) == totals["rows"] == rows
            torch.testing.assert_close(sum(rank["totals"] for rank in of_ranks), totals["totals"])


def validate(job: TrainJob) -> dict[int, dict[str, Any]]:
    """Cut `val` to some numbers of rows; return this rank's rows and totals for each number."""
    loop.EVALUATION_ROWS = 9
    worker = Worker(job)
    whole = worker.val._whole
    assert whole is not None
    results = dict[int, dict[str, Any]]()
    for rows in (len(whole.labels), 7, 1):
        worker.val.rows = rows
        rank_rows = sum(len(group.labels) for group in worker.val.epoch())
        results[rows] = {"rows": rank_rows, "totals": worker._validate()}
    return results


@pytest.mark.parametrize("world_size", [1, 2])
def test_divergence_names_the_epoch_and_the_step_on_all_workers(
    artifacts: Artifacts, world_size: int
) -> None:
    training = TUTORIAL.model_copy(update={"learning_rate": 1e25})
    steps = on_ranks(world_size, diverged, make_job(artifacts, training))
    assert set(steps) == {(1, 2)}


def test_every_optimizer_and_schedule_of_the_settings_is_registered() -> None:
    assert get_args(get_type_hints(Training)["optimizer"]) == tuple(OPTIMIZERS)
    assert get_args(get_type_hints(Training)["schedule"]) == tuple(SCHEDULES)


def test_one_cycle_rises_to_the_peak_and_falls_to_0() -> None:
    rates = [learning_rate(s, steps=100, peak=1.0, schedule="one-cycle") for s in range(101)]
    assert rates[0] == 1 / 25
    assert max(rates) == rates[20] == 1.0
    assert rates[100] < 1e-12
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_a_constant_rate_is_constant() -> None:
    assert {learning_rate(s, steps=9, peak=0.01, schedule="constant") for s in range(9)} == {0.01}
