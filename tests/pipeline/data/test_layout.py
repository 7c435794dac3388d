"""Which files of a folder are data, and the split and class that their paths name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.artifacts.storage import Storage
from pipeline.data import layout
from pipeline.errors import DataError, StorageError

STORAGE = Storage("/nowhere")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN_images", "train"),
        ("train1", "train"),
        ("x_train.npy", "train"),
        ("val", "val"),
        ("Validation", "val"),
        ("dev-set", "val"),
        ("valid", "val"),
        ("test-00000-of-00001.parquet", "test"),
        ("Testing", "test"),
        ("t10k-images", "test"),
        ("eval", "eval"),
        ("train-test", "test"),
        ("latest", None),
        ("trainer", None),
        ("contest", None),
        ("", None),
    ],
)
def test_a_name_names_a_split_by_a_whole_word(name: str, split: str | None) -> None:
    assert layout.split_of(name) == split


@pytest.mark.parametrize(
    "pattern",
    [
        "{split}/{label}/0.png",
        "wrapped/{split}/{label}/0.png",
        "a/test-data/{split}/{label}/0.png",
        "{label}/{split}/0.png",
        "wrapped/{label}/{split}/0.png",
    ],
)
def test_the_folder_of_a_split_may_lie_at_any_depth(pattern: str) -> None:
    pairs = [("Train", "cat"), ("Train", "dog"), ("testing", "cat"), ("testing", "dog")]
    paths = [pattern.format(split=split, label=label) for split, label in pairs]
    groups = layout.group_by_folder(STORAGE, paths)
    assert {split: list(files.values()) for split, files in groups.items()} == {
        "train": ["cat", "dog"],
        "test": ["cat", "dog"],
    }


def test_the_outermost_folder_that_names_a_split_decides() -> None:
    paths = [f"{split}/{name}/0.png" for split in ("train", "test") for name in ("plane", "train")]
    groups = layout.group_by_folder(STORAGE, paths)
    assert list(groups["train"].values()) == list(groups["test"].values()) == ["plane", "train"]


@pytest.mark.parametrize(
    "names", ["bus car train", "beaker flask test_tube", "training_shoe boot", "test_tube dev-kit"]
)
@pytest.mark.parametrize("around", ["", "photos/"])
def test_a_class_may_be_called_like_a_split(names: str, around: str) -> None:
    paths = [f"{around}{name}/0.png" for name in names.split()]
    groups = layout.group_by_folder(STORAGE, paths)
    assert {split: list(files.values()) for split, files in groups.items()} == {
        "train": names.split()
    }


def test_the_same_name_in_two_folders_is_two_classes() -> None:
    paths = [f"{split}/{name}/x/0.png" for split in ("train", "test") for name in "01"]
    groups = layout.group_by_folder(STORAGE, paths)
    assert list(groups["train"].values()) == ["0/x", "1/x"]


def test_without_splits_all_files_are_train() -> None:
    groups = layout.group_by_folder(STORAGE, ["all/cat/0.png", "all/dog/0.png", "all/dog/1.png"])
    assert list(groups) == ["train"]
    assert list(groups["train"].values()) == ["cat", "dog", "dog"]


def test_one_folder_is_a_class_and_no_wrapper() -> None:
    assert list(layout.group_by_folder(STORAGE, ["a/cat/0.png"])["train"].values()) == ["cat"]


def test_eval_is_test_or_val_beside_test() -> None:
    alone = layout.group_by_folder(STORAGE, ["train/a/0.png", "eval/a/0.png"])
    assert list(alone) == ["train", "test"]
    beside = layout.group_by_name(STORAGE, ["train.csv", "eval.csv", "test.csv"])
    assert beside == {"train": ["train.csv"], "val": ["eval.csv"], "test": ["test.csv"]}
    with pytest.raises(DataError, match="has files of val, test and eval"):
        layout.group_by_name(STORAGE, ["train.csv", "val.csv", "eval.csv", "test.csv"])


def test_splits_without_train_are_refused_with_what_there_is_and_the_words() -> None:
    with pytest.raises(DataError) as error:
        layout.group_by_folder(STORAGE, ["fit/cat/0.png", "test/cat/0.png"])
    assert "no files of the split 'train', only fit, test" in str(error.value)
    assert "training" in str(error.value)
    assert "in any case" in str(error.value)


def test_files_beside_the_splits_are_skipped_with_a_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    groups = layout.group_by_folder(STORAGE, ["train/a/0.png", "extra/a/0.png", "cover.png"])
    assert list(groups["train"]) == ["train/a/0.png"]
    shown = " ".join(capsys.readouterr().err.split())
    assert "2 files are skipped, as none of their folders names a split" in shown


def test_hidden_files_are_skipped_with_one_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ("a.png", "._a.png", ".git/b", "__MACOSX/a.png", "x/_SUCCESS", "x/.y/z"):
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_bytes(b"")
    assert layout.data_files(Storage(str(tmp_path))) == ["a.png"]
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.endswith("5 files whose names begin with . or _ are skipped")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"")
    (tmp_path / "b").symlink_to("a")
    for number in range(9):
        (tmp_path / "a" / f"up{number}").symlink_to("..")
        (tmp_path / f"self{number}").symlink_to(".")
    assert layout.data_files(Storage(str(tmp_path))) == ["a/0.png", "b/0.png"]


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(StorageError, match="is not UTF-8"):
        layout.data_files(Storage(str(tmp_path)))
