"""The training function on several ranks, in the local mode of Ray Train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.artifacts.manifests import DatasetManifest, FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.data import shards
from pipeline.errors import TrainingFailed
from pipeline.models.mlp import Mlp
from pipeline.recipes import RECIPES
from pipeline.training import batch_loader, checkpoints
from pipeline.training.checkpoints import TrainState
from pipeline.training.loop import train_loop
from pipeline.training.run_state import TrainJob
from tests.support.local_artifacts import write_dataset
from tests.support.ranks import on_ranks

pytestmark = pytest.mark.ray

FOLDER = "runs/x"

COSTS = ("images_per_s", "data_wait_s", "bytes_read")
"""The metrics that are not the same in a run that was interrupted."""

TUTORIAL = RECIPES["tutorial"].model_copy(
    update={"batch_size": 47, "device": "cpu", "epochs": 3, "hidden_sizes": (16,)}
)

SETTINGS: dict[str, dict[str, Any]] = {
    "fast sgd": {},
    "fast adamw": {"optimizer": "adamw", "shuffle": True, "deform": 0.5},
    "textbook sgd": {"step": "textbook"},
    "textbook adamw": {"step": "textbook", "optimizer": "adamw", "shuffle": True, "deform": 0.5},
    "cnn": {"model": "cnn", "optimizer": "adamw", "learning_rate": 0.003},
    # Of four workers, each batch leaves one without rows.
    "small batches": {"model": "cnn", "batch_size": 3, "epochs": 1, "deform": 0.5},
    # With dropout and batch normalization.
    "own": {"model": "tests.support.noisy_network:noisy"},
    "bf16": {"precision": "bf16", "optimizer": "adamw"},
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def dataset(storage: Storage) -> DatasetManifest:
    return write_dataset(storage, rows_per_shard=50, train=500)


def train(
    storage: Storage, dataset: DatasetManifest, world_size: int = 1, **settings: Any
) -> tuple[TrainState, list[dict[str, float]]]:
    """Train on so many ranks; return the last state and the metrics."""
    training = TUTORIAL.model_copy(update=settings)
    job = TrainJob(storage, dataset, training, FOLDER, "cpu")
    results = on_ranks(world_size, train_keeping_checkpoints, job)
    state = checkpoints.load_latest(storage, FOLDER, epochs=training.epochs)
    assert state
    return state, results[0]["metrics"]


def train_keeping_checkpoints(job: TrainJob) -> dict[str, Any]:
    """Train in groups of two batches, each of which may end with a checkpoint; keep them all."""
    batch_loader.GROUP_ROWS = 100
    checkpoints.MAX_CHECKPOINTS = 100
    return train_loop({"job": job})


def rewind(storage: Storage, number: int) -> FileEntry:
    """Make the checkpoint of this number the newest, as if the run had been killed then."""
    newest_first = checkpoints.listed(storage, FOLDER)
    kept = newest_first[len(newest_first) - 1 - number :]
    index = [{"path": e.path, "bytes": e.bytes, "sha256": e.sha256} for e in kept]
    storage.write(f"{FOLDER}/checkpoints.json", json.dumps(index).encode())
    return newest_first[0]


@pytest.mark.parametrize("name", ["fast sgd", "fast adamw", "textbook adamw", "small batches"])
def test_several_workers_compute_what_one_computes(
    storage: Storage, dataset: DatasetManifest, name: str
) -> None:
    one, lines = train(storage, dataset, **SETTINGS[name])
    storage.delete_folder(FOLDER)
    several, other_lines = train(storage, dataset, 4, **SETTINGS[name])
    torch.testing.assert_close(several.model, one.model, rtol=1e-4, atol=1e-5)
    for line, other in zip(lines, other_lines, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-4)
        assert other["val_accuracy"] == line["val_accuracy"]


@pytest.mark.parametrize(
    ("settings", "world_size"), [({}, 1), ({"optimizer": "adamw", "deform": 0.5}, 2)]
)
def test_the_fast_step_computes_what_the_textbook_step_computes(
    storage: Storage, dataset: DatasetManifest, settings: dict[str, Any], world_size: int
) -> None:
    fast, lines = train(storage, dataset, world_size, step="fast", **settings)
    storage.delete_folder(FOLDER)
    textbook, other_lines = train(storage, dataset, world_size, step="textbook", **settings)
    torch.testing.assert_close(fast.model, textbook.model, rtol=1e-4, atol=1e-5)
    for line, other in zip(lines, other_lines, strict=True):
        for measure in ("loss", "val_loss", "accuracy", "val_accuracy"):
            assert line[measure] == pytest.approx(other[measure], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("step", ["textbook", "fast"])
def test_the_recipe_tutorial_is_plain_sgd_in_file_order(
    storage: Storage, dataset: DatasetManifest, step: str
) -> None:
    split = shards.read_split(storage, dataset, "train")
    model = Mlp(dataset.image, TUTORIAL.hidden_sizes, seed=TUTORIAL.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=TUTORIAL.learning_rate)
    for _ in range(TUTORIAL.epochs):
        for images, labels in zip(
            torch.from_numpy(split.images).split(TUTORIAL.batch_size),
            torch.from_numpy(split.labels).long().split(TUTORIAL.batch_size),
            strict=True,
        ):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    state, _ = train(storage, dataset, step=step)
    torch.testing.assert_close(state.model, dict(model.state_dict()))


@pytest.mark.parametrize(
    ("name", "world_size"),
    [
        ("fast sgd", 1),
        ("fast adamw", 2),
        ("textbook sgd", 4),
        ("own", 2),
        pytest.param("textbook adamw", 1, marks=pytest.mark.slow),
        pytest.param("cnn", 4, marks=pytest.mark.slow),
        pytest.param("bf16", 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_within_an_epoch_to_the_same_bits(
    storage: Storage, dataset: DatasetManifest, name: str, world_size: int
) -> None:
    settings = {**SETTINGS[name], "checkpoint_steps": 1}
    _, metrics = train(storage, dataset, world_size, **settings)
    steps = {int(entry.path.split("-")[3]) for entry in checkpoints.listed(storage, FOLDER)}
    assert steps == {0, 2, 4, 6, 8, 10}, "of 11 steps of an epoch, and the end of each"
    last = rewind(storage, 7)
    _, resumed = train(storage, dataset, world_size, **settings)
    assert checkpoints.listed(storage, FOLDER)[0] == last
    for line, other in zip(metrics, resumed, strict=True):
        assert {k: v for k, v in line.items() if k not in COSTS} == {
            k: v for k, v in other.items() if k not in COSTS
        }


def test_a_run_goes_on_with_other_workers_and_another_step(
    storage: Storage, dataset: DatasetManifest
) -> None:
    settings = {"optimizer": "adamw", "deform": 0.5, "checkpoint_steps": 1}
    expected, metrics = train(storage, dataset, 4, **settings)
    rewind(storage, 7)
    state, resumed = train(storage, dataset, 2, **settings)
    assert [entry["num_workers"] for entry in state.history] == [4, 2]
    assert [(e["from_epoch"], e["from_step"]) for e in state.history] == [(0, 0), (1, 4)]
    torch.testing.assert_close(state.model, expected.model, rtol=1e-4, atol=1e-5)
    for line, other in zip(metrics, resumed, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)

    rewind(storage, 9)
    state, _ = train(storage, dataset, 1, **settings, step="textbook")
    assert [entry["step"] for entry in state.history] == ["fast", "fast", "textbook"]
    torch.testing.assert_close(state.model, expected.model, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("settings", "world_size"), [({}, 1), ({}, 2), ({"model": "cnn"}, 2)])
def test_divergence_names_the_epoch_and_the_step_on_all_workers(
    storage: Storage, dataset: DatasetManifest, world_size: int, settings: dict[str, Any]
) -> None:
    training = TUTORIAL.model_copy(update={"learning_rate": 1e25, **settings})
    job = TrainJob(storage, dataset, training, FOLDER, "cpu")
    assert set(on_ranks(world_size, diverge, job)) == {"in epoch 1, step 2"}


def diverge(job: TrainJob) -> str:
    with pytest.raises(TrainingFailed, match="The loss stopped being") as error:
        train_loop({"job": job})
    return str(error.value).partition(" number ")[2].partition(".")[0]


def test_the_checkpoint_of_seconds(storage: Storage, dataset: DatasetManifest) -> None:
    train(storage, dataset, checkpoint_seconds=0)
    assert len(checkpoints.listed(storage, FOLDER)) > 1
    storage.delete_folder(FOLDER)
    train(storage, dataset, checkpoint_seconds=1000)
    assert len(checkpoints.listed(storage, FOLDER)) == 1
