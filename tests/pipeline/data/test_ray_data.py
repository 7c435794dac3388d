"""Sources as Datasets of Ray: own functions between reading and writing, and what Ray measures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.data import Dataset

from pipeline.arrays import UInt8Array
from pipeline.artifacts.storage import Storage
from pipeline.config import Data
from pipeline.data.catalog import ROLES
from pipeline.data.datasource import plan_tasks, read_tasks, reserved
from pipeline.data.plan import Plan
from pipeline.data.ray_dataset import DatasetSink, read_images
from pipeline.data.readers import idx_format
from pipeline.data.readers.rows import Rows
from pipeline.data.shards import read_split
from pipeline.data.sources import open_source
from pipeline.errors import DataError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 5), np.uint8)
LABELS = np.arange(50, dtype=np.uint8) % 3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    arrays: dict[str, UInt8Array] = {
        "train_images": IMAGES[:40],
        "train_labels": LABELS[:40],
        "test_images": IMAGES[40:],
        "test_labels": LABELS[40:],
    }
    for role, array in arrays.items():
        (folder / ROLES[role]).write_bytes(idx_format.encode(array))
    return folder


def test_a_source_is_a_dataset_of_ray(source: Path) -> None:
    table = read_images(str(source)).to_pandas().sort_values("id")
    np.testing.assert_array_equal(np.stack(table["image"]), IMAGES)
    np.testing.assert_array_equal(table["label"], LABELS)
    assert Counter(table["_split"]) == {"train": 34, "val": 6, "test": 10}
    assert table["_error"].isna().all()


def test_own_functions_stand_between_reading_and_writing(source: Path, tmp_path: Path) -> None:
    def invert(batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"image": 255 - batch["image"]}

    data = Data(name="digits", source=str(source), rows_per_shard=16)
    sink = DatasetSink(str(tmp_path), "inverted", open_source(data), functions=["invert"])
    images = read_images(data).map_batches(invert, batch_size=None)
    images.random_shuffle(seed=0).write_datasink(sink)
    assert sink.manifest.rows == {"train": 34, "val": 6, "test": 10}
    assert len(sink.manifest.files) < 20
    train = read_split(Storage(str(tmp_path)), sink.manifest, "train")
    for image, position in zip(train.images, train.ids, strict=True):
        np.testing.assert_array_equal(image, 255 - IMAGES[position])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch: {"image": batch["image"]}, "lack the columns _error, _split, id, label"),
        (lambda batch: batch | {"image": batch["image"][:, :4]}, r"Images are \(4, 5\)"),
        (lambda batch: batch | {"label": batch["label"] + 1}, "not all from 0 to 2"),
        (lambda batch: batch | {"_split": ["train"] * len(batch["id"])}, "the split 'val'"),
    ],
)
def test_blocks_that_are_no_dataset_are_refused(
    source: Path, tmp_path: Path, function: Any, message: str
) -> None:
    opened = open_source(Data(name="digits", source=str(source)))
    sink = DatasetSink(str(tmp_path), "x", opened, functions=None)
    with pytest.raises(DataError, match=message):
        read_images(str(source)).map_batches(function, batch_size=None).write_datasink(sink)


def _by_function(rows: Rows) -> Dataset:
    """Return what `preprocess` does: the read task applies the function."""
    tasks = plan_tasks(Plan(rows, 0, rows.num_rows, 8), "train", function=partial(map, _ids))
    return read_tasks(tasks)


def _by_map_batches(rows: Rows) -> Dataset:
    """Return what `score` does: Ray fuses what reserves the same."""
    tasks = plan_tasks(Plan(rows, 0, rows.num_rows, 8), "train")
    options = {"batch_size": None, "batch_format": "pyarrow", **reserved(tasks)}
    return read_tasks(tasks).map_batches(_ids, **options)


@pytest.mark.parametrize(
    ("make", "operator"),
    [(_by_function, "ReadImages"), (_by_map_batches, r"ReadImages->MapBatches\(_ids\)")],
)
def test_images_do_not_pass_through_the_object_store(
    source: Path, make: Callable[[Rows], Dataset], operator: str
) -> None:
    """Reading and the function are one operation, whose output is small."""
    rows = open_source(Data(name="digits", source=str(source))).splits["train"]
    stats = make(rows).materialize().stats()
    assert re.search(rf"Operator \d+ {operator}: 5 tasks executed", stats)
    assert "Operator 2" not in stats
    (largest,) = re.findall(r"Output size bytes per block: \d+ min, (\d+) max", stats)
    assert int(largest) < IMAGES[0].size


def _ids(block: Any) -> Any:
    return block.slice(0, 0).select(["id"])
