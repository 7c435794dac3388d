"""A run in the making: what its workers are told, and the log that they leave."""

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
    """What a worker is told: where the data are, how to train, where to put the run."""

    storage: Storage
    dataset: DatasetManifest
    training: Training
    folder: str
    device: str


def reset_run(storage: Storage, folder: str) -> None:
    """Lets training start anew; what a finished run needs stays until that is replaced."""
    storage.delete(f"{folder}/{CHECKPOINTS}")
    storage.delete(f"{folder}/{METRICS}")


def write_metrics(storage: Storage, folder: str, metrics: list[dict[str, float]]) -> None:
    """Writes metrics.jsonl whole, a line an epoch: before the checkpoint of its last epoch."""
    lines = "".join(json.dumps(line) + "\n" for line in metrics)
    storage.write(f"{folder}/{METRICS}", lines.encode())


def read_metrics(storage: Storage, folder: str) -> list[dict[str, float]]:
    """The lines of metrics.jsonl so far, up to one that is damaged."""
    metrics = list[dict[str, float]]()
    with suppress(FileNotFoundError, ValueError):
        for line in storage.read(f"{folder}/{METRICS}").splitlines():
            metrics.append(json.loads(line))
    return metrics
