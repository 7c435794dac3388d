"""Small learnable data. Its 12 x 10 images and 3 classes catch code that assumes 28 or 10."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.data.catalog import ROLES
from pipeline.data.readers import idx_format

HEIGHT, WIDTH, CLASSES = 12, 10, 3

NUM_TRAIN, NUM_TEST = 600, 90


def make_images(count: int, *, seed: int) -> tuple[UInt8Array, UInt8Array]:
    """Return images uint8 (count, 12, 10) and labels uint8 (count,).

    An image is noise, brighter in the third of its rows that the label names. One row and one
    column of pixels are 0 in all images, as the borders of MNIST's are.
    """
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count).astype(np.uint8)
    images = random.integers(0, 100, (count, HEIGHT, WIDTH)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 100
    images[:, 0] = 0
    images[:, :, 3] = 0
    return images, labels


def write_source(folder: Path) -> Path:
    """Write the four IDX files of such images into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", NUM_TRAIN, 1), ("test", NUM_TEST, 2)):
        images, labels = make_images(count, seed=seed)
        (folder / ROLES[f"{split}_images"]).write_bytes(idx_format.encode(images))
        (folder / ROLES[f"{split}_labels"]).write_bytes(idx_format.encode(labels))
    return folder
