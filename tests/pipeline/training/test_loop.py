from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.data import shards
from pipeline.models.mlp import Mlp
from pipeline.recipes import RECIPES, Training
from pipeline.training import loop
from pipeline.training.loop import Diverged, Worker
from pipeline.training.run_state import TrainJob
from pipeline.training.schedule import learning_rate
from tests.conftest import TRAINING, Artifacts
from tests.support.ranks import on_ranks

SEED = RECIPES["tutorial"].model_copy(update={"batch_size": 47, "device": "cpu", "deform": 0.5})
EPOCHS = 3


def make_job(artifacts: Artifacts, training: Training) -> TrainJob:
    return TrainJob(artifacts.storage, artifacts.dataset, training, "runs/none", "cpu")


def epochs(job: TrainJob, count: int = EPOCHS) -> dict[str, Any]:
    """The parameters after some epochs, and the metrics of the last."""
    worker = Worker(job)
    for _ in range(count):
        line = worker.run_epoch()
    return {"parameters": worker.parameters, "line": line}


def diverged(job: TrainJob) -> tuple[int, int]:
    with pytest.raises(Diverged) as error:
        epochs(job)
    epoch, step = error.value.args
    return epoch, step


@pytest.mark.parametrize(
    ("optimizer", "memory_mib"), [("sgd", 1), ("adamw", 1), ("sgd", 0)], ids=str
)
def test_workers_share_what_one_computes(
    artifacts: Artifacts, optimizer: str, memory_mib: int
) -> None:
    """In memory, and streamed where nothing fits."""
    update = {"optimizer": optimizer, "memory_mib": memory_mib}
    job = make_job(artifacts, SEED.model_copy(update=update))
    (alone,) = on_ranks(1, epochs, job)
    for world_size in (2, 4):
        ranks = on_ranks(world_size, epochs, job)
        for rank in ranks:
            torch.testing.assert_close(rank["parameters"], ranks[0]["parameters"], rtol=0, atol=0)
        torch.testing.assert_close(
            ranks[0]["parameters"], alone["parameters"], rtol=1e-4, atol=1e-5
        )
        assert ranks[0]["line"]["val_accuracy"] == alone["line"]["val_accuracy"]
        assert ranks[0]["line"]["loss"] == pytest.approx(alone["line"]["loss"], rel=1e-5)
    (again,) = on_ranks(4, epochs, job)[:1]
    torch.testing.assert_close(again["parameters"], ranks[0]["parameters"], rtol=0, atol=0)


def test_the_recipe_seed_is_plain_sgd_in_file_order(artifacts: Artifacts) -> None:
    split = shards.read_split(artifacts.storage, artifacts.dataset, "train")
    model = Mlp(artifacts.dataset.image, SEED.hidden_sizes, seed=SEED.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=SEED.learning_rate)
    for _ in range(EPOCHS):
        for images, labels in zip(
            torch.from_numpy(split.images).split(SEED.batch_size),
            torch.from_numpy(split.labels).long().split(SEED.batch_size),
            strict=True,
        ):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    expected = torch.cat([p.detach().t().flatten() for p in model.parameters()])
    job = make_job(artifacts, SEED.model_copy(update={"deform": 0.0}))
    (found,) = on_ranks(1, epochs, job)
    torch.testing.assert_close(found["parameters"], expected)


def test_validation_counts_each_example_once(artifacts: Artifacts) -> None:
    job = make_job(artifacts, TRAINING)
    (alone,) = on_ranks(1, validate, job)
    for world_size in (2, 3):
        ranks = on_ranks(world_size, validate, job)
        for rows, totals in alone.items():
            parts = [rank[rows] for rank in ranks]
            assert sum(part["rows"] for part in parts) == totals["rows"] == rows
            torch.testing.assert_close(sum(part["totals"] for part in parts), totals["totals"])


def validate(job: TrainJob) -> dict[int, dict[str, Any]]:
    """Of `val` cut to some numbers of rows: this rank's rows, their loss, correct predictions."""
    loop.EVALUATION_ROWS = 9
    worker = Worker(job)
    whole = worker.val._whole
    assert whole is not None
    found = dict[int, dict[str, Any]]()
    for rows in (len(whole.labels), 7, 1):
        worker.val._whole = type(whole)(whole.images[:rows], whole.labels[:rows])
        mine = sum(len(block.labels) for block in worker.val.epoch())
        found[rows] = {"rows": mine, "totals": worker._validate()}
    return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_divergence_names_the_epoch_and_the_step_on_all_workers(
    artifacts: Artifacts, world_size: int
) -> None:
    training = SEED.model_copy(update={"learning_rate": 1e25, "deform": 0.0})
    found = on_ranks(world_size, diverged, make_job(artifacts, training))
    assert set(found) == {(1, 2)}


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    rates = [learning_rate(s, steps=100, peak=1.0, schedule="one-cycle") for s in range(101)]
    assert rates[0] == 1 / 25
    assert max(rates) == rates[20] == 1.0
    assert rates[100] < 1e-12
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_a_constant_rate_is_constant() -> None:
    assert {learning_rate(s, steps=9, peak=0.01, schedule="constant") for s in range(9)} == {0.01}
