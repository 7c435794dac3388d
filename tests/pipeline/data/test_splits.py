"""Which rows of a source become `train`, `val` and `test`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Data, Preprocess
from pipeline.data import splits
from pipeline.data.shards import LabeledImages, read_split
from pipeline.data.sources import open_source
from pipeline.errors import DataError, SettingError
from pipeline.stages.preprocess import preprocess
from tests.support.sources import encode_png, noise, write_idx, write_parquet, write_pngs

pytestmark = pytest.mark.usefixtures("ray_session")


def make(root: Path, source: Path, **data: Any) -> tuple[DatasetManifest, dict[str, LabeledImages]]:
    """Return the dataset and the rows of its splits."""
    settings = Data(**{"name": "mine", "source": str(source), "rows_per_shard": 30, **data})
    dataset = preprocess(Preprocess(root=str(root), data=settings))
    storage = Storage(str(root))
    return dataset, {split: read_split(storage, dataset, split) for split in dataset.rows}


def as_set(rows: LabeledImages) -> set[bytes]:
    return {image.tobytes() for image in rows.images}


def test_a_source_in_order_of_class_gives_all_classes_to_every_split(tmp_path: Path) -> None:
    classes = "abcdefghi"
    write_pngs(tmp_path / "source" / "train", list(classes), 20)
    write_pngs(tmp_path / "source" / "test", list(classes), 4, seed=1)
    dataset, rows = make(tmp_path / "root", tmp_path / "source")
    assert dataset.rows == {"train": 150, "val": 30, "test": 36}
    assert set(np.bincount(rows["val"].labels, minlength=9)) == {3, 4}
    # No shard holds one class.
    for start in range(0, 150, 30):
        assert len(np.unique(rows["train"].labels[start : start + 30])) > 4
    ids = np.concatenate([rows[split].ids for split in rows])
    np.testing.assert_array_equal(np.sort(ids), np.arange(216))


def test_the_draw_does_not_depend_on_the_order_or_names_of_files(tmp_path: Path) -> None:
    images = noise(60)
    for folder, order in (("a", range(60)), ("b", reversed(range(60)))):
        for position, number in enumerate(order):
            path = tmp_path / folder / ("cat", "dog")[number % 2] / f"{position}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(images[number]))
    _, first = make(tmp_path / "root", tmp_path / "a")
    _, second = make(tmp_path / "root", tmp_path / "b", rows_per_shard=7)
    _, other = make(tmp_path / "root", tmp_path / "a", seed=1)
    for split in ("train", "val", "test"):
        assert as_set(first[split]) == as_set(second[split])
    assert as_set(first["val"]) != as_set(other["val"])
    assert sum(map(len, map(as_set, first.values()))) == 60


def test_copies_of_an_image_are_in_one_split(tmp_path: Path) -> None:
    write_pngs(tmp_path / "s", ["cat", "dog"], 20)
    for number in range(20):
        copy = (tmp_path / "s" / "cat" / f"{number}.png").read_bytes()
        (tmp_path / "s" / "cat" / f"copy{number}.png").write_bytes(copy)
    _, rows = make(tmp_path / "root", tmp_path / "s")
    images = [as_set(rows[split]) for split in rows]
    assert not images[0] & images[1]
    assert not images[0] & images[2]
    assert not images[1] & images[2]
    assert sum(len(rows[split].ids) for split in rows) == 60


def test_a_split_of_the_source_is_kept_and_only_the_other_drawn(tmp_path: Path) -> None:
    write_idx(tmp_path / "s", count=60)
    write_idx(tmp_path / "s", "val-images-idx3-ubyte", "val-labels-idx1-ubyte", 12, seed=1)
    dataset, rows = make(tmp_path / "root", tmp_path / "s")
    assert dataset.rows == {"train": 50, "val": 12, "test": 10}
    assert as_set(rows["val"]) == {image.tobytes() for image in noise(12, 1)}
    np.testing.assert_array_equal(np.bincount(rows["test"].labels), [5, 5])


def test_classes_with_few_images_are_shared_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pngs(tmp_path / "s" / "train", {"many": 30, "three": 3, "one": 1})
    write_pngs(tmp_path / "s" / "test", {"many": 3}, seed=1)
    _, rows = make(tmp_path / "root", tmp_path / "s")
    assert np.bincount(rows["val"].labels, minlength=3).tolist() == [4, 0, 1]
    assert np.bincount(rows["train"].labels).tolist() == [26, 1, 2]
    shown = " ".join(capsys.readouterr().err.split())
    assert "1 classes have too few images to give val one: one" in shown


def test_a_class_whose_images_are_nearly_all_broken_or_copies_stays_in_train(
    tmp_path: Path,
) -> None:
    write_pngs(tmp_path / "s", {"many": 30, "broken": 6, "copies": 6})
    for number in range(1, 6):
        (tmp_path / "s" / "broken" / f"{number}.png").write_bytes(b"no image")
        copy = (tmp_path / "s" / "copies" / "0.png").read_bytes()
        (tmp_path / "s" / "copies" / f"{number}.png").write_bytes(copy)
    _, rows = make(tmp_path / "root", tmp_path / "s", on_bad_row="quarantine")
    assert np.bincount(rows["train"].labels).tolist()[:2] == [1, 6]


@pytest.mark.parametrize("column", ["_split", "_hash", "label", "id"])
def test_a_column_of_the_pipeline_assigns_no_rows(tmp_path: Path, column: str) -> None:
    words = pa.array(["train", "val", "test"] * 4)
    write_parquet(tmp_path / "a.parquet", **{"class": [0, 1] * 6, column: words})
    with pytest.raises(SettingError, match=rf"--data.split-by '{column}': this name is used"):
        make(tmp_path / "root", tmp_path / "a.parquet", split_by=column)


def test_a_column_assigns_rows_to_splits(tmp_path: Path) -> None:
    words = ["Train", "validation", "test", "train"] * 6
    write_parquet(tmp_path / "a.parquet", count=24, fold=words)
    _, rows = make(tmp_path / "root", tmp_path / "a.parquet", split_by="fold", rows_per_shard=5)
    for split, positions in (("train", (0, 3)), ("val", (1,)), ("test", (2,))):
        assert set(rows[split].ids % 4) == set(positions)
        np.testing.assert_array_equal(rows[split].images, noise(24)[rows[split].ids])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["train", "val", "test", "fold9"] * 3, "column fold is 'fold9', which is none of train"),
        (["train", "val", None, "test"] * 3, "column fold is None"),
        (["train", "test", "test", "train"] * 3, "no row is of the split 'val'"),
        ([[1]] * 12, r"the column is of the type list<.*>, but it must hold one of train"),
    ],
)
def test_a_column_of_other_values_is_refused(tmp_path: Path, column: Any, message: str) -> None:
    write_parquet(tmp_path / "a.parquet", fold=column)
    with pytest.raises(DataError, match=message):
        make(tmp_path / "root", tmp_path / "a.parquet", split_by="fold")


def test_more_val_than_train_has_is_refused(tmp_path: Path) -> None:
    source = open_source(Data(name="mine", source=str(write_idx(tmp_path))))
    with pytest.raises(SettingError, match=r"--data.num-val is 12, but there are only 12"):
        splits.draw_counts(source, Data(name="mine", num_val=12))
