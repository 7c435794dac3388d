"""Checkpoints of a run. They stay usable if the process crashes at any moment.

A checkpoint is one file, written atomically. `checkpoints.json` lists the newest two with their
digests, so training continues from the older one if the newest is damaged. Ray Train's own index is
not used: it is rewritten in place, and does not verify the files it points to.
"""

from __future__ import annotations

import hashlib
import io
import logging
from contextlib import suppress
from typing import NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from pipeline.artifacts.commit import find, read_file, write_file
from pipeline.artifacts.manifests import ArtifactFile, FileEntry, RunManifest
from pipeline.artifacts.storage import Storage
from pipeline.errors import ArtifactDamaged, ModelRejected
from pipeline.models.factory import create_model
from pipeline.recipes import read_training
from pipeline.training.run_state import CHECKPOINTS

MAX_CHECKPOINTS = 2

_INDEX = TypeAdapter(tuple[ArtifactFile, ...])


class TrainState(NamedTuple):
    """The state after `epoch` epochs. Random numbers follow from the seed and the epoch.

    It holds no times, so the same training writes the same bytes.
    """

    epoch: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save(storage: Storage, folder: str, state: TrainState) -> FileEntry:
    """Write a checkpoint, list it as the newest, and delete those that are no longer needed."""
    buffer = io.BytesIO()
    torch.save(state._asdict(), buffer)
    data = buffer.getvalue()
    name = f"checkpoints/epoch-{state.epoch:05}-{hashlib.sha256(data).hexdigest()[:12]}.pt"
    entry = write_file(storage, folder, name, data)
    newest_first = (entry, *(old for old in _index(storage, folder) if old != entry))
    storage.write(f"{folder}/{CHECKPOINTS}", _INDEX.dump_json(newest_first[:MAX_CHECKPOINTS]))
    finished = None
    with suppress(ArtifactDamaged):
        finished = find(storage, folder, RunManifest)
    for old in newest_first[MAX_CHECKPOINTS:]:
        if not finished or old.path != finished.checkpoint:
            storage.delete(f"{folder}/{old.path}")
    return entry


def load_latest(storage: Storage, folder: str, *, epochs: int) -> TrainState | None:
    """Return the newest undamaged checkpoint of at most `epochs` epochs, or None.

    `epochs` is the number of epochs whose metrics were read: a later checkpoint would leave a gap
    in the metrics.
    """
    for entry in _index(storage, folder):
        try:
            state = _load(storage, folder, entry)
        except ArtifactDamaged as error:
            logging.getLogger(__name__).warning("%s Trying an older checkpoint.", error)
            continue
        if state.epoch <= epochs:
            return state
    return None


def load_model(storage: Storage, run: RunManifest) -> nn.Module:
    """Return the trained network of a finished run.

    Raise ModelRejected if the run's weights are not those of the network, whose code may be
    anyone's own.
    """
    state = _load(storage, f"runs/{run.run}", run.file(run.checkpoint))
    training = read_training(run.training)
    model = create_model(run.image, training)
    try:
        model.load_state_dict(state.model)
    except RuntimeError:
        raise ModelRejected(
            f"The weights of run {run.run} do not fit the network {training.model}: its code has "
            "changed since the training. Restore the code, or train again."
        ) from None
    return model.eval()


def _load(storage: Storage, folder: str, entry: FileEntry) -> TrainState:
    data = read_file(storage, folder, entry)
    return TrainState(**torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"))


def _index(storage: Storage, folder: str) -> tuple[FileEntry, ...]:
    try:
        return _INDEX.validate_json(storage.read(f"{folder}/{CHECKPOINTS}"))
    except (FileNotFoundError, ValidationError):
        return ()
