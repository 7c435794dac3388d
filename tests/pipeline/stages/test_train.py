from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.artifacts.commit import find, read_file
from pipeline.artifacts.manifests import RunManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Train
from pipeline.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    ResourcesMissing,
    StorageError,
    TrainingFailed,
)
from pipeline.recipes import Training
from pipeline.stages.train import train
from pipeline.training.checkpoints import load_latest, load_model
from tests.conftest import TRAINING, Artifacts


@pytest.fixture
def root(artifacts: Artifacts, tmp_path: Path) -> str:
    """Copy the session's artifacts, with the two newest checkpoints of its finished run."""
    return str(shutil.copytree(artifacts.root, tmp_path / "root"))


def run(
    root: str, artifacts: Artifacts, training: Training = TRAINING, *, force: bool = False
) -> RunManifest:
    return train(Train(root=root, dataset=artifacts.dataset.ref, train=training, force=force))


def test_training_learns_and_writes_a_line_for_every_epoch(artifacts: Artifacts) -> None:
    text = artifacts.storage.read(f"runs/{artifacts.run.run}/metrics.jsonl")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["val_accuracy"] > 0.95
    assert set(lines[0]) == {
        "epoch",
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "images_per_s",
        "data_wait_s",
        "bytes_read",
        "num_workers",
        "cpus_per_worker",
    }
    assert tuple(lines) == artifacts.run.metrics


def test_the_last_checkpoint_of_a_finished_run_holds_its_weights(artifacts: Artifacts) -> None:
    config = json.loads(artifacts.storage.read(f"runs/{artifacts.run.run}/config.json"))
    assert config == artifacts.run.training
    assert artifacts.run.device == "cpu"
    state = load_latest(artifacts.storage, f"runs/{artifacts.run.run}", epochs=4)
    assert state is not None
    assert state.epoch == 4
    torch.testing.assert_close(
        dict(load_model(artifacts.storage, artifacts.run).state_dict()), state.model
    )


def test_training_again_by_force_gives_the_same_bits(root: str, artifacts: Artifacts) -> None:
    second = run(root, artifacts, force=True)
    assert checkpoint(second) == checkpoint(artifacts.run)
    assert second.metrics != artifacts.run.metrics, "the measured speed shows that it ran"


def test_force_leaves_the_finished_run_until_it_is_replaced(
    root: str, artifacts: Artifacts
) -> None:
    shutil.rmtree(Path(root, "datasets", artifacts.dataset.ref, "train"))
    with pytest.raises(ArtifactDamaged, match="is missing, though its manifest lists it"):
        run(root, artifacts, force=True)
    storage, folder = Storage(root), f"runs/{artifacts.run.run}"
    assert find(storage, folder, RunManifest) == artifacts.run
    assert read_file(storage, folder, artifacts.run.file(artifacts.run.checkpoint))


def test_two_workers_compute_what_one_computes(root: str, artifacts: Artifacts) -> None:
    one = artifacts.run
    workers = TRAINING.model_copy(update={"num_workers": 2})
    assert run(root, artifacts, workers) == one
    two = run(root, artifacts, workers, force=True)
    assert two.run == one.run
    weights_of_one, weights_of_two = (
        dict(load_model(Storage(own_root), manifest).state_dict())
        for own_root, manifest in ((artifacts.root, one), (root, two))
    )
    torch.testing.assert_close(weights_of_two, weights_of_one)
    assert two.metrics[-1]["val_accuracy"] == one.metrics[-1]["val_accuracy"]
    assert two.metrics[-1]["loss"] == pytest.approx(one.metrics[-1]["loss"])


def test_two_trainings_of_the_same_run_do_not_mix(root: str, artifacts: Artifacts) -> None:
    with (
        Storage(root).locked(f"runs/{artifacts.run.run}/.lock"),
        pytest.raises(StorageError, match="Another process is working on"),
    ):
        run(root, artifacts, force=True)


def test_more_workers_than_the_cluster_has_are_refused_at_once(
    root: str, artifacts: Artifacts
) -> None:
    with pytest.raises(ResourcesMissing, match="99 CPUs were asked for, but the cluster has"):
        run(root, artifacts, TRAINING.model_copy(update={"num_workers": 99}), force=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused_at_once(root: str, artifacts: Artifacts) -> None:
    with pytest.raises(ResourcesMissing, match="1 GPU was asked for, but the cluster has none"):
        run(root, artifacts, TRAINING.model_copy(update={"device": "cuda"}))


def test_a_loss_that_diverges_ends_the_run_without_a_result(
    root: str, artifacts: Artifacts
) -> None:
    training = Training(
        recipe="tutorial", optimizer="sgd", learning_rate=1e30, epochs=2, device="cpu"
    )
    with pytest.raises(TrainingFailed, match="in epoch 1, step 2. Try a smaller --train.learning"):
        run(root, artifacts, training)
    assert not list(Path(root).glob("runs/tutorial-*/manifest.json"))


def test_the_error_of_an_unknown_dataset_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="Build it first: python -m pipeline preprocess"):
        train(Train(root=str(tmp_path), dataset="bars/000000000000"))


def checkpoint(manifest: RunManifest) -> str:
    return manifest.file(manifest.checkpoint).sha256
