"""Measure steps per second, ours and the peers' in turn, on one core; tests.bench.train calls it.

python -m tests.bench.steps ROOT DATASET ROUNDS
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.artifacts.commit import load
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.data.shards import read_split
from pipeline.recipes import RECIPES
from pipeline.training.loop import train_loop
from pipeline.training.run_state import TrainJob
from tests.bench import peers
from tests.support.ranks import on_one_rank


def main(root: str, ref: str, rounds: int) -> None:
    # One core, and so one thread, for all. JAX counts the cores when it is imported.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    storage = Storage(root)
    dataset = load(storage, f"datasets/{ref}", DatasetManifest)
    split = read_split(storage, dataset, "train")
    images = split.images.reshape(len(split.labels), -1).astype(np.float32) / np.float32(255)
    arrays = images, split.labels.astype(np.int64)
    calls, scan = peers.xla(arrays)
    passes = {
        "eager": peers.eager(arrays),
        "xla": calls,
        "xla_scan": scan,
        "floor": peers.products(arrays),
        "sklearn": peers.sklearn(arrays),
    }
    steps = len(split.labels) / peers.BATCH
    for run in passes.values():
        run()
    rates = []
    for _ in range(rounds):
        # Our rate includes the order, the loss and the accuracy; a peer's is that of the bare loop.
        rate = {"ours": images_per_s(storage, dataset) / peers.BATCH}
        for name, run in passes.items():
            started = time.perf_counter()
            run()
            rate[name] = steps / (time.perf_counter() - started)
        rates.append(rate)
    print(json.dumps(rates))


def images_per_s(storage: Storage, dataset: DatasetManifest) -> float:
    """Return the rate of the second of two epochs of the recipe `tutorial`."""
    training = RECIPES["tutorial"].model_copy(update={"epochs": 2})
    with tempfile.TemporaryDirectory(dir=storage.root) as folder:
        job = TrainJob(storage, dataset, training, Path(folder).name, "cpu")
        result = on_one_rank(train_loop, {"job": job})
    return float(result["metrics"][1]["images_per_s"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
