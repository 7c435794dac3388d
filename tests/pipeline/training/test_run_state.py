from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts.manifests import DatasetManifest, FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.recipes import RECIPES, Training
from pipeline.training.batch_loader import AUGMENT, SHUFFLE, stream_seed
from pipeline.training.lanes import num_lanes
from pipeline.training.loop import train_worker
from pipeline.training.run_state import TrainJob, run_name, write_metrics
from tests.support.local_artifacts import write_dataset
from tests.support.ranks import on_ranks


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetManifest:
    return write_dataset(Storage(str(tmp_path)))


def name(dataset: DatasetManifest, device: str = "cpu", **settings: Any) -> str:
    return run_name(dataset, Training(**settings), device)


def test_the_names_of_runs_change_only_on_purpose(dataset: DatasetManifest) -> None:
    """If this fails, other runs get other names: raise TRAINING_FORMAT if results change too."""
    assert name(dataset) == "fast-e21919c86dd4"
    assert run_name(dataset, RECIPES["tutorial"], "cuda") == "tutorial-e6cedd045d64"


@pytest.mark.parametrize(
    "settings",
    [
        {"num_workers": 8},
        {"cpus_per_worker": 4},
        {"checkpoint_every": 1},
        {"memory_mib": 1},
        {"device": "cpu"},
    ],
    ids=str,
)
def test_a_run_may_be_resumed_with_other_resources(
    dataset: DatasetManifest, settings: dict[str, Any]
) -> None:
    assert name(dataset, **settings) == name(dataset)


@pytest.mark.parametrize(
    "settings", [{"seed": 1}, {"epochs": 5}, {"shuffle": False}, {"hidden_sizes": (9,)}], ids=str
)
def test_other_weights_have_another_name(
    dataset: DatasetManifest, settings: dict[str, Any]
) -> None:
    assert name(dataset, **settings) != name(dataset)


def test_the_device_and_the_dataset_are_in_the_name(dataset: DatasetManifest) -> None:
    other = dataset.model_copy(update={"version": "ba9876543210"})
    assert len({name(dataset), name(dataset, "cuda"), name(other)}) == 3


def test_lanes_are_in_the_name_if_memory_does_not_hold_the_split(dataset: DatasetManifest) -> None:
    files = [
        FileEntry(path=f"train/{number}", bytes=1, sha256="0" * 64, rows=1000)
        for number in range(100)
    ]
    large = dataset.model_copy(update={"rows": {"train": 100_000}, "files": tuple(files)})
    memory = (1, 2, 8, 9, 11, 12, 1024)
    lanes = [num_lanes(large, "train", mib << 20) for mib in memory]
    assert lanes == [4, 8, 34, 39, 48, None, None], "12 MB hold 100,000 images of 120 pixels"
    assert len({name(large, memory_mib=mib) for mib in memory}) == 6


def test_each_use_of_random_numbers_in_an_epoch_has_its_own() -> None:
    uses = (SHUFFLE, AUGMENT)
    keys = [(seed, epoch, use) for seed in range(9) for epoch in range(99) for use in uses]
    assert len({stream_seed(*key) for key in keys}) == len(keys)


def test_the_random_numbers_change_only_on_purpose() -> None:
    """If this fails, torch or numpy draw other numbers: raise TRAINING_FORMAT."""
    generator = torch.Generator().manual_seed(stream_seed(0, 0, SHUFFLE))
    assert torch.randperm(10, generator=generator).tolist() == [6, 3, 1, 5, 8, 7, 0, 2, 9, 4]


def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    """Resume a run of two workers after two of three epochs with one."""
    storage = Storage(str(tmp_path))
    training = Training(epochs=3, batch_size=20, checkpoint_every=1, deform=0.5)
    job = TrainJob(storage, write_dataset(storage), training, "runs/x", "cpu")
    expected = on_ranks(2, train_worker, {"job": job})[0]
    write_metrics(storage, "runs/x", expected["metrics"][:2])
    (resumed,) = on_ranks(1, train_worker, {"job": job})
    assert [line["num_workers"] for line in resumed["metrics"]] == [2, 2, 1]
    assert resumed["metrics"][:2] == expected["metrics"][:2]
    for measure in ("loss", "val_loss"):
        last = resumed["metrics"][2][measure]
        assert last == pytest.approx(expected["metrics"][2][measure], rel=1e-4)
