"""Measure steps per second, ours and the peers' in turn, on one core; tests.bench.train calls it.

python -m tests.bench.steps ROOT DATASET ROUNDS
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time

import numpy as np
import torch
import torch.distributed as dist

from pipeline.artifacts.commit import load
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.data.shards import read_split
from pipeline.recipes import RECIPES
from pipeline.training.loop import Worker
from pipeline.training.run_state import TrainJob
from tests.bench import peers


def main(root: str, ref: str, rounds: int) -> None:
    # One core, and so one thread, for all. JAX counts the cores when it is imported.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    group = tempfile.mkdtemp()
    dist.init_process_group("gloo", init_method=f"file://{group}/group", rank=0, world_size=1)
    storage = Storage(root)
    dataset = load(storage, f"datasets/{ref}", DatasetManifest)
    with torch.inference_mode():
        ours = Worker(TrainJob(storage, dataset, RECIPES["tutorial"], "runs/none", "cpu"))
        ours.run_epoch()
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
        with torch.inference_mode():
            rate = {"ours": ours.run_epoch()["images_per_s"] / peers.BATCH}
        for name, run in passes.items():
            started = time.perf_counter()
            run()
            rate[name] = steps / (time.perf_counter() - started)
        rates.append(rate)
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
