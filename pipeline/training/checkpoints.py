"""Checkpoints of a run. They stay usable if the process crashes at any moment.

A checkpoint is a folder with one file, written atomically. `checkpoints.json` lists the newest two
with their digests, so training continues from the older one if the newest is damaged. Ray Train is
told of each, but its own index is not used to resume: it is rewritten in place, and does not verify
the files it points to.
"""

from __future__ import annotations

import hashlib
import io
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

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
    """The state of training at the end of a group of batches.

    Random numbers follow from the seed, the epoch and the step. It holds no times, so the same
    training writes the same bytes.
    """

    epoch: int
    """Number of finished epochs."""
    model: dict[str, Tensor]
    """The `state_dict` of the model."""
    optimizer: dict[int, dict[str, Tensor]]
    """The state of torch's optimizer for each parameter, by its index in the model."""
    step: int = 0
    """Number of steps taken in the epoch that is not finished."""
    sums: Sequence[Sequence[float]] = ()
    """For each worker, its summed loss and number of correct predictions in these steps."""
    history: Sequence[dict[str, Any]] = ()
    """See `RunManifest.history`."""


def save(storage: Storage, folder: str, state: TrainState) -> FileEntry:
    """Write a checkpoint, list it as the newest, and delete those that are no longer needed."""
    buffer = io.BytesIO()
    torch.save(_canonical(state._asdict()), buffer)
    data = buffer.getvalue()
    digits = hashlib.sha256(data).hexdigest()[:12]
    name = f"checkpoints/epoch-{state.epoch:05}-step-{state.step:07}-{digits}/state.pt"
    entry = write_file(storage, folder, name, data)
    newest_first = (entry, *(old for old in listed(storage, folder) if old != entry))
    storage.write(f"{folder}/{CHECKPOINTS}", _INDEX.dump_json(newest_first[:MAX_CHECKPOINTS]))
    finished = None
    with suppress(ArtifactDamaged):
        finished = find(storage, folder, RunManifest)
    for old in newest_first[MAX_CHECKPOINTS:]:
        if not finished or old.path != finished.checkpoint:
            storage.delete_folder(f"{folder}/{old.path}".rpartition("/")[0])
    return entry


def load_latest(storage: Storage, folder: str, *, epochs: int) -> TrainState | None:
    """Return the newest undamaged checkpoint of at most `epochs` epochs, or None.

    `epochs` is the number of epochs whose metrics were read: a later checkpoint would leave a gap
    in the metrics.
    """
    for entry in listed(storage, folder):
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


def listed(storage: Storage, folder: str) -> tuple[FileEntry, ...]:
    """Return the entries of the checkpoints, the newest first."""
    try:
        return _INDEX.validate_json(storage.read(f"{folder}/{CHECKPOINTS}"))
    except (FileNotFoundError, ValidationError):
        return ()


def _load(storage: Storage, folder: str, entry: FileEntry) -> TrainState:
    return TrainState(**_read(storage, folder, entry))


def _read(storage: Storage, folder: str, entry: FileEntry) -> dict[str, Any]:
    data = read_file(storage, folder, entry)
    fields: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return fields


def _canonical(value: Any) -> Any:
    """Return a copy of a state on the CPU that is saved as the same bytes if it is equal.

    A tensor may be a view of more than is to be saved, and pickle writes equal strings once only if
    they are the same object.
    """
    match value:
        case Tensor():
            return value.cpu().clone(memory_format=torch.contiguous_format)
        case dict():
            return {_canonical(name): _canonical(item) for name, item in value.items()}
        case list() | tuple():
            return type(value)(map(_canonical, value))
        case str():
            return sys.intern(value)
    return value
