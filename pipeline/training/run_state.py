"""A run's name, and its state while it is unfinished: its workers' job, and their metrics."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

from pipeline.artifacts.commit import digest
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.recipes import Training
from pipeline.training.lanes import num_lanes

TRAINING_FORMAT = 1
"""Part of every run's name: raise it if the code trains other weights from the same settings. Such
changes are another order of images, other random numbers, or another rule of an optimizer. What
only rounds sums differently is none."""

NEUTRAL = {"memory_mib", "checkpoint_every", "num_workers", "cpus_per_worker", "device"}
"""Settings that are left out of the name, because the weights do not depend on them except by the
rounding of sums. So a run may be resumed with others. The name has the device that was used, and
the number of lanes of a split that memory does not hold."""

CHECKPOINTS = "checkpoints.json"

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class TrainJob:
    """All that a worker needs to train: dataset, settings, device and the folder of the run."""

    storage: Storage
    dataset: DatasetManifest
    training: Training
    folder: str
    device: str


def run_name(dataset: DatasetManifest, training: Training, device: str) -> str:
    """Return the recipe and a digest of all that decides the weights of a run on this device."""
    settings = training.model_dump(mode="json", exclude=NEUTRAL)
    lanes = num_lanes(dataset, "train", training.memory_mib << 20)
    return f"{training.recipe}-{digest(TRAINING_FORMAT, dataset.ref, settings, device, lanes)}"


def reset_run(storage: Storage, folder: str) -> None:
    """Delete the state, so that training starts from the first epoch.

    A manifest and its checkpoint stay until the new run replaces them.
    """
    storage.delete(f"{folder}/{CHECKPOINTS}")
    storage.delete(f"{folder}/{METRICS}")


def write_metrics(storage: Storage, folder: str, metrics: list[dict[str, float]]) -> None:
    """Write metrics.jsonl as a whole, one line per epoch."""
    lines = "".join(json.dumps(line) + "\n" for line in metrics)
    storage.write(f"{folder}/{METRICS}", lines.encode())


def read_metrics(storage: Storage, folder: str) -> list[dict[str, float]]:
    """Return the metrics of the epochs so far, up to the first damaged line."""
    metrics = list[dict[str, float]]()
    with suppress(FileNotFoundError, ValueError):
        for line in storage.read(f"{folder}/{METRICS}").splitlines():
            metrics.append(json.loads(line))
    return metrics
