"""Sources as Datasets of Ray: own functions between reading and writing, and what Ray measures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.arrays import UInt8Array
from pipeline.artifacts.storage import Storage
from pipeline.config import Data
from pipeline.contract import ImageSpec
from pipeline.data.catalog import ROLES
from pipeline.data.datasink import DatasetSink
from pipeline.data.datasource import map_blocks, plan_tasks, read_images, read_tasks
from pipeline.data.plan import Plan
from pipeline.data.readers import idx_format
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
    assert list(table["_split"]) == ["train"] * 40 + ["test"] * 10
    assert table["_error"].isna().all()


def test_own_functions_stand_between_reading_and_writing(source: Path, tmp_path: Path) -> None:
    def invert(batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"image": 255 - batch["image"]}

    root = str(tmp_path / "root")
    image = ImageSpec(6, 5, ("a", "b", "c"))
    sink = DatasetSink(root, "inverted", image, inputs=["source", "invert"])
    images = read_images(Data(name="digits", source=str(source), rows_per_shard=16))
    inverted = images.map_batches(invert, batch_size=None)
    inverted.write_datasink(sink)
    assert sink.manifest.rows == {"train": 40, "val": 0, "test": 10}
    train = read_split(Storage(root), sink.manifest, "train")
    np.testing.assert_array_equal(train.images[np.argsort(train.ids)], 255 - IMAGES[:40])


def test_columns_that_writing_needs_must_be_kept(source: Path, tmp_path: Path) -> None:
    sink = DatasetSink(str(tmp_path), "x", ImageSpec(6, 5, ("a", "b", "c")), inputs=None)
    with pytest.raises(DataError, match="lack the columns _shard"):
        read_images(str(source)).drop_columns(["_shard"]).write_datasink(sink)


def test_images_do_not_pass_through_the_object_store(source: Path) -> None:
    """Reading and mapping are one operation, whose output is small."""
    rows = open_source(Data(name="digits", source=str(source))).splits["train"]
    tasks = plan_tasks(Plan(rows, 0, rows.num_rows, 8), "train")
    sizes = map_blocks(read_tasks(tasks), _count, tasks).materialize()
    stats = sizes.stats()
    assert re.search(r"Operator \d+ ReadImages->MapBatches\(_count\): 5 tasks executed", stats)
    assert "Operator 2" not in stats
    (largest,) = re.findall(r"Output size bytes per block: \d+ min, (\d+) max", stats)
    assert int(largest) < IMAGES[0].size


def _count(block: Any) -> Any:
    return block.slice(0, 0).select(["id"])
