from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.storage import Storage
from pipeline.config import Data, Preprocess
from pipeline.contract import ImageSpec
from pipeline.data.catalog import ROLES
from pipeline.data.readers import idx_format
from pipeline.data.shards import LabeledImages, encode, iter_shards, pixels, read_split
from pipeline.errors import DataError, SettingError
from pipeline.stages.preprocess import preprocess
from tests.conftest import Artifacts
from tests.support.sample_data import NUM_TRAIN, make_images, write_source


def test_splits_hold_each_image_once_with_its_label_and_position(artifacts: Artifacts) -> None:
    splits = [read_split(artifacts.storage, artifacts.dataset, s) for s in ("train", "val", "test")]
    images, labels = make_images(NUM_TRAIN, seed=1)
    assert [len(split.ids) for split in splits] == [500, 100, 90]
    ids = np.concatenate([split.ids for split in splits])
    np.testing.assert_array_equal(np.sort(ids), np.arange(690))
    for split in splits[:2]:
        np.testing.assert_array_equal(split.images, images[split.ids])
        np.testing.assert_array_equal(split.labels, labels[split.ids])


def test_every_shard_holds_rows_from_the_whole_source(artifacts: Artifacts) -> None:
    for shard in iter_shards(artifacts.storage, artifacts.dataset, "train"):
        assert len(shard.ids) <= 200
        assert np.bincount(shard.ids // 100, minlength=6).min() > 10
        assert (np.diff(shard.ids) < 0).any()


def test_shards_have_the_columns_of_the_contract(artifacts: Artifacts) -> None:
    entries = artifacts.dataset.shards("train")
    assert sum(entry.rows or 0 for entry in entries) == 500
    path = artifacts.storage.uri(f"datasets/{artifacts.dataset.ref}/{entries[0].path}")
    file = pq.ParquetFile(path)
    assert file.schema_arrow.field("id").type == pa.int64()
    assert file.schema_arrow.field("image").type == pa.binary(120)
    assert file.schema_arrow.field("label").type == pa.uint8()
    assert file.metadata.row_group(0).column(1).compression == "ZSTD"
    metadata = file.schema_arrow.metadata
    assert (metadata[b"height"], metadata[b"width"]) == (b"12", b"10")
    assert json.loads(metadata[b"class_names"]) == ["0", "1", "2"]


def test_a_range_of_a_large_shard_can_be_read_by_itself() -> None:
    rows = LabeledImages(
        np.arange(25_000), np.zeros((25_000, 1, 1), np.uint8), np.zeros(25_000, np.uint8)
    )
    shard = encode(rows, ImageSpec(1, 1, ("a", "b")))
    groups = pq.read_metadata(pa.BufferReader(shard)).to_dict()["row_groups"]
    first = [group["columns"][0]["statistics"]["min"] for group in groups]
    assert first == [0, 10_000, 20_000]


def test_the_same_input_gives_the_same_bytes(artifacts: Artifacts, tmp_path: Path) -> None:
    second = preprocess(Preprocess(root=str(tmp_path), data=artifacts.data))
    assert second == artifacts.dataset


def test_a_second_run_writes_nothing(artifacts: Artifacts, tmp_path: Path) -> None:
    settings = Preprocess(root=str(tmp_path), data=artifacts.data)
    preprocess(settings)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    preprocess(settings)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_settings_give_another_version(artifacts: Artifacts, tmp_path: Path) -> None:
    data = artifacts.data.model_copy(update={"num_val": 50})
    other = preprocess(Preprocess(root=str(tmp_path), data=data))
    assert other.version != artifacts.dataset.version
    assert other.rows == {"train": 550, "val": 50, "test": 90}


def test_a_label_that_only_test_has_is_refused_and_no_shard_is_left(
    ray_session: None, tmp_path: Path
) -> None:
    folder = write_source(tmp_path / "source")
    labels = np.zeros(90, np.uint8)
    labels[17] = 3
    (folder / ROLES["test_labels"]).write_bytes(idx_format.encode(labels))
    settings = Preprocess(root=str(tmp_path / "root"), data=Data(name="bars", source=str(folder)))
    with pytest.raises(DataError, match=r"1 classes have no image in train \(3\)"):
        preprocess(settings)
    assert not list((tmp_path / "root").rglob("*.parquet"))


def test_val_must_leave_rows_to_train_on(source: Path, tmp_path: Path) -> None:
    data = Data(name="bars", source=str(source), num_val=600)
    with pytest.raises(SettingError, match="Leave some to train on"):
        preprocess(Preprocess(root=str(tmp_path), data=data))


def test_an_unknown_split_is_an_error(artifacts: Artifacts) -> None:
    with pytest.raises(SettingError, match="'valid' is not one of train, val, test"):
        next(iter_shards(artifacts.storage, artifacts.dataset, "valid"))


def test_pixels_are_read_from_whole_sliced_and_chunked_columns(artifacts: Artifacts) -> None:
    images, labels = make_images(9, seed=3)
    data = encode(LabeledImages(np.arange(9), images, labels), artifacts.dataset.image)
    column = pq.read_table(pa.BufferReader(data))["image"]
    chunked = pa.chunked_array([column.chunk(0)[:4], column.chunk(0)[4:]])
    for whole in (column, chunked):
        for start, stop in ((0, 9), (2, 7)):
            decoded = pixels(whole[start:stop], artifacts.dataset.image)
            np.testing.assert_array_equal(decoded, images[start:stop])


def test_no_temporary_file_is_left(artifacts: Artifacts) -> None:
    root = Storage(artifacts.root)
    assert not [path for path in Path(root.uri()).rglob("*") if ".tmp" in path.name]
