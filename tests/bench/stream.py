"""Measure one epoch over a large dataset, in memory or streamed; tests.bench.train calls it.

    python -m tests.bench.stream ROOT DATASET MEMORY_MIB

It prints images per second, and the peak memory in MiB without that of the imports.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.artifacts.commit import commit, load, write_file
from pipeline.artifacts.manifests import DatasetManifest, FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.data import shards
from pipeline.data.shards import LabeledImages
from pipeline.recipes import RECIPES
from pipeline.training.augment import Augment
from pipeline.training.batch_loader import RankSlice
from pipeline.training.loop import train_loop
from pipeline.training.run_state import TrainJob
from tests.support.ranks import on_one_rank

ROWS_PER_SHARD = 10_000


def make(storage: Storage, ref: str, rows: int) -> DatasetManifest:
    """Write a dataset with `rows` augmented digits in `train`, drawn from another dataset's."""
    digits = load(storage, f"datasets/{ref}", DatasetManifest)
    split = shards.read_split(storage, digits, "train")
    dataset = digits.model_copy(update={"name": "deformed", "version": f"{rows:012}"})
    folder = f"datasets/{dataset.ref}"

    def files() -> Iterator[FileEntry]:
        augment = Augment(*digits.image.shape, 1.0, 0, torch.device("cpu"))
        whole_batch = RankSlice(0, ROWS_PER_SHARD, ROWS_PER_SHARD)
        for number in range(rows // ROWS_PER_SHARD):
            picked = np.random.default_rng(number).integers(0, len(split.labels), ROWS_PER_SHARD)
            pixels = torch.from_numpy(split.images[picked])
            noise = augment.draw(number, ROWS_PER_SHARD)
            images = augment(pixels, whole_batch, noise).round().byte().numpy()
            ids = np.arange(ROWS_PER_SHARD) + number * ROWS_PER_SHARD
            data = shards.encode(LabeledImages(ids, images, split.labels[picked]), digits.image)
            path = f"train/{number:05}.parquet"
            yield write_file(storage, folder, path, data, rows=ROWS_PER_SHARD)
        for entry in digits.shards("val"):
            data = storage.read(f"datasets/{digits.ref}/{entry.path}")
            yield write_file(storage, folder, entry.path, data, rows=entry.rows)

    counts = {"train": rows, "val": digits.rows["val"]}
    dataset = dataset.model_copy(update={"files": tuple(files()), "rows": counts})
    commit(storage, folder, dataset)
    return dataset


def peak_mib() -> float:
    """Return the peak memory of this process; getrusage would include that of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main(root: str, ref: str, memory_mib: int) -> None:
    before = peak_mib()
    storage = Storage(root)
    dataset = load(storage, f"datasets/{ref}", DatasetManifest)
    training = RECIPES["fast"].model_copy(update={"memory_mib": memory_mib, "epochs": 1})
    with tempfile.TemporaryDirectory(dir=root) as folder:
        job = TrainJob(storage, dataset, training, Path(folder).name, "cpu")
        (line,) = on_one_rank(train_loop, {"job": job})["metrics"]
    print(json.dumps({"rate": line["images_per_s"], "peak_mib": peak_mib() - before}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
