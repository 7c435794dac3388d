"""Preprocessing of image files, Parquet, EMNIST, invalid rows and odd classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Data, Preprocess
from pipeline.data.catalog import PROFILES, ROLES
from pipeline.data.image_hashes import HashSet, hash_images
from pipeline.data.readers import idx_format
from pipeline.data.shards import read_split
from pipeline.errors import DataError
from pipeline.stages.preprocess import preprocess

pytestmark = pytest.mark.usefixtures("ray_session")

SHAPE = (20, 24)


def images(count: int, seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def make_dataset(root: Path, source: Path, **data: Any) -> DatasetManifest:
    return preprocess(
        Preprocess(root=str(root), data=Data(**{"name": "odd", "source": str(source), **data}))
    )


def write_idx(
    folder: Path, train: UInt8Array, labels: list[int], test_labels: tuple[int, ...] = (0, 1, 0, 1)
) -> Path:
    folder.mkdir(exist_ok=True)
    values = {
        "train_images": train,
        "train_labels": np.array(labels, np.uint8),
        "test_images": images(4, seed=9),
        "test_labels": np.array(test_labels, np.uint8),
    }
    for role, array in values.items():
        (folder / ROLES[role]).write_bytes(idx_format.encode(array))
    return folder


def write_image_files(folder: Path, pixels: UInt8Array, classes: list[str], split: str) -> None:
    for number, (image, name) in enumerate(zip(pixels, classes, strict=True)):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / split / name / f"{number}.png")


def test_image_files_by_class_become_a_dataset(tmp_path: Path) -> None:
    source, classes = tmp_path / "source", ["cat", "dog", "eel"]
    for seed, (split, count) in enumerate((("train", 9), ("val", 3), ("test", 6))):
        write_image_files(source, images(count, seed), classes * (count // 3), split)
    dataset = make_dataset(tmp_path / "root", source)
    assert dataset.rows == {"train": 9, "val": 3, "test": 6}
    assert dataset.image.class_names == ("cat", "dog", "eel")
    assert dataset.image.shape == SHAPE
    val = read_split(Storage(str(tmp_path / "root")), dataset, "val")
    np.testing.assert_array_equal(val.images[np.argsort(val.ids)], images(3, 1))
    np.testing.assert_array_equal(np.sort(val.labels), [0, 1, 2])


def test_parquet_by_split_becomes_a_dataset(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        table = pa.table({"image": images(12, seed).tolist(), "label": [0, 1, 2, 3] * 3})
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    dataset = make_dataset(tmp_path / "root", tmp_path)
    assert dataset.rows == {"train": 8, "val": 4, "test": 12}
    test = read_split(Storage(str(tmp_path / "root")), dataset, "test")
    np.testing.assert_array_equal(test.images, images(12, 1)[test.ids - 12])
    np.testing.assert_array_equal(np.sort(test.ids), np.arange(12, 24))


def test_images_of_emnist_are_transposed_and_its_letters_count_from_0(tmp_path: Path) -> None:
    profile = PROFILES["emnist-letters"]
    train, labels = images(60), np.arange(60, dtype=np.uint8) % 26 + 1
    values = {"train_images": train, "train_labels": labels}
    values |= {"test_images": images(26, 1), "test_labels": labels[:26]}
    for role, array in values.items():
        (tmp_path / profile.files[role]).write_bytes(idx_format.encode(array))
    dataset = make_dataset(tmp_path / "root", tmp_path, name="emnist-letters")
    assert (dataset.image.height, dataset.image.width) == (24, 20)
    assert dataset.image.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    split = read_split(Storage(str(tmp_path / "root")), dataset, "train")
    np.testing.assert_array_equal(split.images, train[split.ids].transpose(0, 2, 1))
    np.testing.assert_array_equal(split.labels, labels[split.ids] - 1)


def test_more_classes_than_a_label_holds_are_refused(tmp_path: Path) -> None:
    source, classes = tmp_path / "source", [f"{k:03}" for k in range(300)]
    write_image_files(source, images(300), classes, "train")
    write_image_files(source, images(1, 1), ["000"], "test")
    with pytest.raises(DataError, match="has 300 classes, but 2 to 256 are needed"):
        make_dataset(tmp_path / "root", source)


def test_all_invalid_rows_are_listed_and_no_shard_is_left(tmp_path: Path) -> None:
    source, classes = tmp_path / "source", ["cat", "eel"] * 10
    train = images(20)
    train[3] = train[7] = 200
    train[5] = images(4, seed=9)[2]
    write_image_files(source, train, classes, "train")
    write_image_files(source, images(4, seed=9), ["cat", "dog", "cat", "eel"], "test")
    (source / "test" / "dog" / "1.png").write_bytes(b"none")
    with pytest.raises(DataError) as error:
        make_dataset(tmp_path / "root", source)
    for problem in (
        "2 rows of train: all pixels are 200 (ids 16, 18)",
        "1 rows of test: test/dog/1.png: It is neither a PNG nor a JPEG. (ids 22)",
        "1 rows of train: the image stands in a later split (ids 17)",
        "1 classes have no image in train (dog)",
    ):
        assert problem in str(error.value)
    assert not list((tmp_path / "root").rglob("*.parquet"))


def test_quarantined_rows_are_left_out_and_listed_with_the_reason(tmp_path: Path) -> None:
    train = images(20)
    train[3] = 0
    train[5] = images(4, seed=9)[2]
    source = write_idx(tmp_path / "source", train, [0, 1] * 10)
    options = {"on_bad_row": "quarantine", "num_val": 4, "rows_per_shard": 7}
    dataset = make_dataset(tmp_path / "root", source, **options)
    assert dataset.rows == {"train": 14, "val": 4, "test": 4}
    storage = Storage(str(tmp_path / "root"))
    splits = [read_split(storage, dataset, split) for split in ("train", "val")]
    kept = np.sort(np.concatenate([split.ids for split in splits]))
    np.testing.assert_array_equal(kept, np.delete(np.arange(20), [3, 5]))
    folder = tmp_path / "root" / "datasets" / dataset.ref
    rejected = [file.path for file in dataset.files if "rejected/" in file.path]
    rows = [row for path in rejected for row in pq.read_table(folder / path).to_pylist()]
    assert {row["id"]: row["reason"] for row in rows} == {
        3: "all pixels are 0",
        5: "the image stands in a later split",
    }


def test_images_in_two_splits_are_detected_across_shards(tmp_path: Path) -> None:
    source, classes = tmp_path / "source", ["cat", "dog"] * 10
    train, val, test = images(20), images(20, 1), images(20, 2)
    train[11], val[5], train[15] = test[3], test[1], val[8]
    for split, pixels in (("train", train), ("val", val), ("test", test)):
        write_image_files(source, pixels, classes, split)
    problem = r"2 rows of train: .* \(ids \d+, \d+\); 1 rows of val: .* \(ids \d+\)"
    with pytest.raises(DataError, match=problem):
        make_dataset(tmp_path / "root", source, rows_per_shard=3)


def test_a_split_without_a_valid_row_is_refused(tmp_path: Path) -> None:
    train = images(20)
    source = write_idx(tmp_path / "source", train, [0, 1] * 10)
    (source / ROLES["test_images"]).write_bytes(idx_format.encode(np.zeros((4, *SHAPE), np.uint8)))
    with pytest.raises(DataError, match="no row of test is valid"):
        make_dataset(tmp_path / "root", source, on_bad_row="quarantine")


@pytest.mark.parametrize("name", ["cat/0.png", "dog/7.png"])
def test_a_broken_image_is_put_aside_wherever_it_stands(tmp_path: Path, name: str) -> None:
    source, classes = tmp_path / "source", ["cat", "dog"] * 4
    for seed, split in enumerate(("train", "val", "test")):
        write_image_files(source, images(8, seed), classes, split)
    (source / "train" / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match=rf"1 rows of train: train/{name}: It is neither"):
        make_dataset(tmp_path / "root", source, rows_per_shard=7)
    dataset = make_dataset(tmp_path / "root", source, rows_per_shard=7, on_bad_row="quarantine")
    assert dataset.rows == {"train": 7, "val": 8, "test": 8}
    assert len(read_split(Storage(str(tmp_path / "root")), dataset, "train").images) == 7


@pytest.mark.parametrize("difference", [128, 255])
def test_images_that_differ_little_are_not_taken_for_repeats(difference: int) -> None:
    """Pixels 7 and 15 are the top bytes of their words: the worst case of the hash."""
    ones = np.full((64, 4, 4), 100, np.uint8)
    ones[np.arange(64), 0, 0] = np.arange(64)
    others = ones.copy()
    others[:, 1, 3] ^= difference
    others[:, 3, 3] ^= difference
    assert not HashSet(np.sort(hash_images(others))).contains(hash_images(ones)).any()


def test_a_summary_and_a_contact_sheet_are_written(tmp_path: Path) -> None:
    train = images(20)
    dataset = make_dataset(
        tmp_path / "root", write_idx(tmp_path / "s", train, [0, 1] * 10), num_val=4
    )
    folder = tmp_path / "root" / "datasets" / dataset.ref
    split = read_split(Storage(str(tmp_path / "root")), dataset, "train")
    summary = json.loads((folder / "summary.json").read_text())["train"]
    assert summary["classes"] == {"0": 8, "1": 8}
    assert summary["mean"] == pytest.approx(split.images.mean(), abs=1e-3)
    assert summary["deviation"] == pytest.approx(split.images.std(), abs=1e-3)
    sheet = np.asarray(Image.open(folder / "contact.png"))
    first = [int(np.flatnonzero(split.labels == label)[0]) for label in (0, 1)]
    np.testing.assert_array_equal(sheet[2:22, 2:26], split.images[first[0]])
    np.testing.assert_array_equal(sheet[24:44, 2:26], split.images[first[1]])


def test_an_interrupted_run_keeps_the_shards_whose_content_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_idx(tmp_path / "source", images(20), [0, 1] * 10)
    whole = make_dataset(tmp_path / "a", source, rows_per_shard=3)
    make_dataset(tmp_path / "b", source, rows_per_shard=3)
    folder = tmp_path / "b" / "datasets" / whole.ref
    (folder / "manifest.json").unlink()
    kept, lost = (folder / entry.path for entry in whole.shards("train")[:2])
    lost.unlink()
    damaged = folder / whole.shards("test")[0].path
    data = bytearray(damaged.read_bytes())
    data[-60] ^= 1
    damaged.write_bytes(data)
    before = kept.stat().st_mtime_ns
    assert make_dataset(tmp_path / "b", source, rows_per_shard=3) == whole
    assert kept.stat().st_mtime_ns == before
    shown = capsys.readouterr().err
    assert "1 of 2 shards of test already exist" in shown
    assert "6 of 7 shards of train already exist" in shown
