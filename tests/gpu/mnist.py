"""MNIST's files as a dataset, written without Ray."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.artifacts.commit import commit, write_file
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec
from pipeline.data.shards import LabeledImages, encode

IMAGE = ImageSpec(28, 28, tuple("0123456789"))
NUM_VAL = 10_000
ROWS_PER_SHARD = 10_000
HEADERS = {"images": 16, "labels": 8}


def write_mnist(storage: Storage, source: Path) -> DatasetManifest:
    """Commit MNIST with its last training images as `val`, as `preprocess` does."""
    train, test = (
        LabeledImages(np.arange(len(labels)), images, labels)
        for images, labels in (read(source, "train"), read(source, "t10k"))
    )
    splits = {"train": cut(train, 0, -NUM_VAL), "val": cut(train, -NUM_VAL, None), "test": test}
    folder = "datasets/mnist/0123456789ab"
    files = []
    for split, rows in splits.items():
        for start in range(0, len(rows.labels), ROWS_PER_SHARD):
            shard = cut(rows, start, start + ROWS_PER_SHARD)
            path = f"{split}/part-{start:06}.parquet"
            data = encode(shard, IMAGE)
            files.append(write_file(storage, folder, path, data, rows=len(shard.labels)))
    dataset = DatasetManifest(
        name="mnist",
        version="0123456789ab",
        image=IMAGE,
        rows={split: len(rows.labels) for split, rows in splits.items()},
        source={},
        files=tuple(files),
    )
    return commit(storage, folder, dataset)


def cut(rows: LabeledImages, start: int, stop: int | None) -> LabeledImages:
    return LabeledImages(rows.ids[start:stop], rows.images[start:stop], rows.labels[start:stop])


def read(source: Path, split: str) -> tuple[UInt8Array, UInt8Array]:
    """Return the images, uint8 (N, 28, 28), and the labels, uint8 (N,), of a split."""
    images, labels = (
        np.frombuffer(content(source, f"{split}-{kind}"), np.uint8, offset=header)
        for kind, header in HEADERS.items()
    )
    return images.reshape(-1, 28, 28), labels


def content(source: Path, name: str) -> bytes:
    """Return the content of a file of MNIST, whose name may end in various ways."""
    (path,) = source.glob(f"{name}*")
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data
