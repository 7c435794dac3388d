from __future__ import annotations

from pathlib import Path

from pipeline.artifacts.storage import Storage
from pipeline.training.checkpoints import MAX_CHECKPOINTS, TrainState, load_latest, save
from tests.support.local_artifacts import write_dataset, write_run


def test_checkpoints_are_saved_beside_a_finished_run(tmp_path: Path) -> None:
    """Train by force again: the checkpoint of the finished run stays, if its manifest is sound."""
    storage = Storage(str(tmp_path))
    run = write_run(storage, write_dataset(storage))
    folder = f"runs/{run.run}"
    for epoch in range(2, 7):
        save(storage, folder, TrainState(epoch, {}, {}))
    assert storage.exists(f"{folder}/{run.checkpoint}")
    assert len(storage.files(f"{folder}/checkpoints")) == MAX_CHECKPOINTS + 1

    storage.write(f"{folder}/manifest.json", b"{")
    save(storage, folder, TrainState(7, {}, {}))
    state = load_latest(storage, folder, epochs=7)
    assert state
    assert state.epoch == 7
