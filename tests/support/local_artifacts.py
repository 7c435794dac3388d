"""A dataset of the sample data and a run on it, written without Ray."""

from __future__ import annotations

import numpy as np

from pipeline.artifacts.commit import commit, write_file
from pipeline.artifacts.manifests import DatasetManifest, RunManifest
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec
from pipeline.data.shards import LabeledImages, encode
from pipeline.models.mlp import Mlp
from pipeline.training import checkpoints
from tests.support.sample_data import HEIGHT, WIDTH, make_images

IMAGE = ImageSpec(HEIGHT, WIDTH, ("a", "b", "c"))


def write_dataset(
    storage: Storage, *, rows_per_shard: int = 40, by_class: bool = False, **rows: int
) -> DatasetManifest:
    """Commit a dataset with this number of rows by split (default: 100 each)."""
    rows = {"train": 100, "val": 100, "test": 100, **rows}
    files = []
    for seed, (split, count) in enumerate(rows.items()):
        images, labels = make_images(count, seed=seed)
        if by_class:
            order = labels.argsort()
            images, labels = images[order], labels[order]
        for number, start in enumerate(range(0, count, rows_per_shard)):
            own = slice(start, start + rows_per_shard)
            shard = LabeledImages(np.arange(count)[own], images[own], labels[own])
            files.append(
                write_file(
                    storage,
                    "datasets/bars/0123456789ab",
                    f"{split}/part-{number:05}.parquet",
                    encode(shard, IMAGE),
                    rows=len(shard.ids),
                )
            )
    dataset = DatasetManifest(
        name="bars",
        version="0123456789ab",
        image=IMAGE,
        rows=rows,
        source={},
        files=tuple(files),
    )
    commit(storage, f"datasets/{dataset.ref}", dataset)
    return dataset


def write_run(storage: Storage, dataset: DatasetManifest, *, seed: int = 0) -> RunManifest:
    """Commit a run that ended with its first weights: an Mlp with 16 hidden units."""
    model = Mlp(dataset.image, (16,), seed=seed)
    run = f"untrained-{seed:012}"
    state = checkpoints.TrainState(1, model.state_dict(), {})
    checkpoint = checkpoints.save(storage, f"runs/{run}", state)
    losses = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy"), 1.0)
    manifest = RunManifest(
        run=run,
        dataset=dataset.ref,
        image=dataset.image,
        training={"hidden_sizes": [16]},
        device="cpu",
        metrics=({"epoch": 1, **losses},),
        checkpoint=checkpoint.path,
        files=(checkpoint,),
    )
    commit(storage, f"runs/{run}", manifest)
    return manifest
