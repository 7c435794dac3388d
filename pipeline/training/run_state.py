"""The state of an unfinished run: the job that its workers get, and the metrics they write."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.recipes import Training

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
