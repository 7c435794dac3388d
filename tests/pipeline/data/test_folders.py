"""The forms of a folder's files, from the folder to the rows of its splits."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest

from pipeline.config import Data
from pipeline.data.readers import idx_format
from pipeline.data.sources import Source, open_source
from pipeline.errors import DataError, SettingError
from tests.support.sources import (
    csv_lines,
    noise,
    table,
    webdataset,
    write_csv,
    write_idx,
    write_parquet,
    write_pngs,
    write_tar,
)


def open_at(path: Path, **data: Any) -> Source:
    return open_source(Data(**{"name": "mine", "source": str(path), **data}))


def counts(source: Source) -> dict[str, int]:
    return {split: rows.num_rows for split, rows in source.splits.items()}


def read_all(source: Source, split: str) -> tuple[Any, Any]:
    """Return the images and labels of a split."""
    rows = source.splits[split]
    batch = rows.read(0, rows.num_rows)
    assert not batch.rejects
    return batch.images, batch.labels


def idx_in_folders(folder: Path) -> None:
    """Write folders called as the files in them, beside files with a dot in place of a dash."""
    for split in ("train", "t10k"):
        images, labels = f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"
        write_idx(folder, f"{images}/{images}", f"{labels}/{labels}", seed=1)


def write_qmnist(folder: Path) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        numbers = np.zeros((12, 8), ">i4")
        numbers[:, 0], numbers[:, 1:] = np.arange(12) % 2, 77
        head = bytes([0, 0, 12, 2]) + (12).to_bytes(4, "big") + (8).to_bytes(4, "big")
        labels = gzip.compress(head + numbers.tobytes())
        images = gzip.compress(idx_format.encode(noise(12, seed)))
        (folder / f"qmnist-{split}-images-idx3-ubyte.gz").write_bytes(images)
        (folder / f"qmnist-{split}-labels-idx2-int.gz").write_bytes(labels)


def write_four_npz(folder: Path) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        np.savez(folder / f"kmnist-{split}-imgs.npz", noise(12, seed))
        np.savez(folder / f"kmnist-{split}-labels.npz", np.arange(12) % 2)


def write_one_npz(folder: Path) -> None:
    labels = np.arange(12) % 2
    np.savez_compressed(
        folder / "mnist.npz", x_train=noise(12), y_train=labels, x_test=noise(12, 1), y_test=labels
    )


def write_npy(folder: Path) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        (folder / split).mkdir()
        np.save(folder / split / "images.npy", noise(12, seed)[..., None])
        np.save(folder / split / "labels.npy", (np.arange(12) % 2)[:, None])


def write_arrow(folder: Path) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        (folder / split).mkdir()
        path = folder / split / "data-00000-of-00001.arrow"
        rows = table(12, seed)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=5)


def in_files(write: Callable[..., Path], name: str) -> Callable[[Path], None]:
    def write_both(folder: Path) -> None:
        for split, seed in (("train", 0), ("test", 1)):
            write(folder / name.format(split), count=12, seed=seed)

    return write_both


FORMS = {
    "MNIST's names": lambda folder: [
        write_idx(folder),
        write_idx(folder, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", seed=1),
    ],
    "IDX files in folders of their names": idx_in_folders,
    "QMNIST": write_qmnist,
    "four .npz": write_four_npz,
    "one .npz": write_one_npz,
    ".npy in folders of splits": write_npy,
    "Parquet": in_files(write_parquet, "{}-00000-of-00001.parquet"),
    "Parquet in folders": in_files(write_parquet, "default/{}/0.parquet"),
    "Arrow streams as Hugging Face saves": write_arrow,
    "CSV": in_files(write_csv, "mnist_{}.csv"),
    "WebDataset": in_files(write_tar, "{}-000000.tar"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_by_its_names(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path)
    source = open_at(tmp_path)
    assert counts(source) == {"train": 12, "test": 12}
    assert source.shape == (6, 6)
    assert source.class_names == ("0", "1")
    assert source.train_counts == (6, 6)
    images, labels = read_all(source, "test")
    np.testing.assert_array_equal(images, noise(12, 1))
    np.testing.assert_array_equal(labels, np.arange(12) % 2)


@pytest.mark.parametrize(
    "words",
    [("train", "test"), ("Training", "Testing"), ("TRAIN", "Eval"), ("x/training", "x/testing")],
)
def test_image_files_are_read_by_the_folders_of_split_and_class(
    tmp_path: Path, words: tuple[str, str]
) -> None:
    for seed, word in enumerate(words):
        write_pngs(tmp_path / word, ["cat", "dog"], 3, seed)
    source = open_at(tmp_path)
    assert counts(source) == {"train": 6, "test": 6}
    assert source.class_names == ("cat", "dog")
    images, labels = read_all(source, "test")
    np.testing.assert_array_equal(images, noise(6, 1))
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1])


def test_ids_are_positions_in_the_source(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", id=np.arange(12))
    source = open_at(tmp_path)
    ids = [source.splits[split].read(0, 12).ids for split in ("train", "test")]
    np.testing.assert_array_equal(np.concatenate(ids), np.arange(24))


@pytest.mark.parametrize("split", ["Training/", ""])
def test_local_paths_are_those_of_files_that_exist(tmp_path: Path, split: str) -> None:
    write_pngs(tmp_path / split, ["cat", "dog"])
    paths = open_at(tmp_path).splits["train"].local_paths
    assert paths
    assert all(map(os.path.exists, paths))


def test_image_files_without_a_class_are_refused(tmp_path: Path) -> None:
    write_pngs(tmp_path, {".": 3})
    with pytest.raises(DataError, match=r"0.png lies in no folder that names its class.*SPLIT/"):
        open_at(tmp_path)


def test_idx_files_are_taken_before_image_files_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pngs(write_idx(tmp_path) / "train", ["0", "1"])
    assert counts(open_at(tmp_path)) == {"train": 12}
    assert "12 files are skipped" in " ".join(capsys.readouterr().err.split())


def test_a_table_without_images_beside_image_files_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pngs(tmp_path / "train", ["cat", "dog"])
    pyarrow.feather.write_feather(pa.table({"url": ["a"]}), tmp_path / "0.feather")
    write_csv(tmp_path / "labels.csv", ["path,label", "a.png,cat"])
    (tmp_path / "train" / "cat" / "9.webp").write_bytes(b"RIFF")
    assert counts(open_at(tmp_path)) == {"train": 12}
    assert "3 files are skipped" in " ".join(capsys.readouterr().err.split())


def test_one_file_is_a_source(tmp_path: Path) -> None:
    write_one_npz(tmp_path)
    assert counts(open_at(tmp_path / "mnist.npz")) == {"train": 12, "test": 12}
    assert counts(open_at(write_csv(tmp_path / "digits.csv"))) == {"train": 12}


def test_a_test_file_of_kaggle_without_labels_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "test.csv", labels=False)
    write_csv(tmp_path / "sample_submission.csv", ["ImageId,Label", "1,0"])
    assert counts(open_at(tmp_path)) == {"train": 12}
    shown = " ".join(capsys.readouterr().err.split())
    assert "as they have no labels" in shown
    assert "as neither folder nor name names a split" in shown


def test_training_files_without_labels_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", labels=False)
    with pytest.raises(DataError, match=r"train.csv has no labels. Tables have them in a column"):
        open_at(tmp_path)


def test_an_empty_file_is_skipped_and_an_empty_split_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "train-0.parquet")
    write_parquet(tmp_path / "train-1.parquet", count=0)
    write_csv(tmp_path / "ignored.csv")
    write_parquet(tmp_path / "test.parquet", count=0)
    assert counts(open_at(tmp_path)) == {"train": 12}
    assert capsys.readouterr().err.count("have no") == 2


def test_arrays_of_several_data_sets_are_refused(tmp_path: Path) -> None:
    for name in ("mnist", "kmnist"):
        files = f"{name}-train-images-idx3-ubyte", f"{name}-train-labels-idx1-ubyte"
        write_idx(tmp_path, *files)
    with pytest.raises(DataError, match="several data sets: kmnist, mnist"):
        open_at(tmp_path)


def test_one_hot_labels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x_train.npy", noise(16))
    np.save(tmp_path / "y_train.npy", np.eye(8, dtype=np.int64)[np.arange(16) % 8])
    with pytest.raises(DataError, match="labels are one integer for each image"):
        open_at(tmp_path)


def test_a_compressed_tar_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    packed = gzip.compress(write_tar(tmp_path / "train.tar").read_bytes())
    (tmp_path / "train.tar").unlink()
    (tmp_path / "train.tar.gz").write_bytes(packed)
    with pytest.raises(DataError, match="as a tar file without compression"):
        open_at(tmp_path)


def test_mixed_sizes_are_refused_or_fitted_as_asked(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet")
    np.savez(tmp_path / "x.npz", noise(12))
    wide = [image.tobytes() for image in noise(12, 1, (8, 8))]
    write_parquet(tmp_path / "test.parquet", image=pa.array(wide, pa.binary(64)))
    with pytest.raises(DataError, match=r"give it with --data.size"):
        open_at(tmp_path)
    fitted = open_at(tmp_path, size=(5, 7))
    assert fitted.shape == (5, 7)
    assert read_all(fitted, "test")[0].shape == (12, 5, 7)


def test_flat_pixels_may_have_the_size_that_is_asked_for(tmp_path: Path) -> None:
    lines = [",".join(line.split(",")[:25]) for line in csv_lines()]
    write_csv(tmp_path / "train.csv", lines)
    with pytest.raises(DataError, match="24 pixels, which is not a square. Give their size with"):
        open_at(tmp_path)
    images, _ = read_all(open_at(tmp_path, size=(4, 6)), "train")
    np.testing.assert_array_equal(images, noise(12).reshape(12, -1)[:, :24].reshape(12, 4, 6))


def test_a_list_says_the_split_of_each_file(tmp_path: Path) -> None:
    write_pngs(tmp_path / "all", ["cat", "dog"], 3)
    lines = [
        f"all/{name}/{i}.png,{'test' if i == 2 else 'Train'}"
        for name in ("cat", "dog")
        for i in range(3)
    ]
    (tmp_path / "splits.csv").write_text("\n".join(["path,split", *lines]))
    source = open_at(tmp_path, split_by="splits.csv")
    assert counts(source) == {"train": 4, "test": 2}
    assert source.class_names == ("cat", "dog")
    (tmp_path / "splits.csv").write_text("\n".join([*lines, "all/cat/9.png,test"]))
    with pytest.raises(DataError, match=r"lists 1 paths that .* lacks \('all/cat/9.png'"):
        open_at(tmp_path, split_by="splits.csv")


@pytest.mark.parametrize("line", ["a.png", "a.png,none", ",train", "all/cat/0.png,train", "\0,\0"])
def test_a_line_that_says_no_split_is_refused(tmp_path: Path, line: str) -> None:
    write_pngs(tmp_path / "all", ["cat", "dog"], 3)
    (tmp_path / "list.txt").write_text(f"all/cat/0.png,train\n{line}\n")
    with pytest.raises(DataError, match=r"list.txt, line 2: .* is not PATH,SPLIT"):
        open_at(tmp_path, split_by="list.txt")


def test_another_split_of_the_same_files_is_another_source(tmp_path: Path) -> None:
    for name in "abc":
        write_parquet(tmp_path / f"{name}.parquet", seed=ord(name))
    digests = []
    for words in (("train", "val", "test"), ("test", "val", "train")):
        lines = [f"{name}.parquet,{word}" for name, word in zip("abc", words, strict=True)]
        (tmp_path / "splits.csv").write_text("\n".join(lines))
        digests.append(open_at(tmp_path, split_by="splits.csv").digests)
    assert digests[0] != digests[1]


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    write_pngs(tmp_path / "train", ["cat", "dog"], 3)
    with pytest.raises(DataError, match="the source has no such file"):
        open_at(tmp_path, split_by="list.txt")


def test_a_column_says_the_split_of_each_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", fold=["train", "test", "dev"] * 4)
    assert open_at(tmp_path, split_by="fold").split_column == "fold"
    with pytest.raises(DataError, match="has no column 'other'"):
        open_at(tmp_path, split_by="other")
    np.savez(
        tmp_path / "b.npz", x_train=noise(4), y_train=[0, 1, 0, 1], x_test=noise(4), y_test=[1] * 4
    )
    with pytest.raises(SettingError, match=r"name its splits already \(train, test\)"):
        open_at(tmp_path / "b.npz", split_by="fold")


def test_a_number_of_val_is_refused_if_the_source_says_its_val(tmp_path: Path) -> None:
    write_pngs(tmp_path / "train", ["cat", "dog"])
    assert counts(open_at(tmp_path, num_val=3)) == {"train": 12}
    write_pngs(tmp_path / "val", ["cat", "dog"], seed=1)
    with pytest.raises(SettingError, match=r"--data.num-val 3 does not apply"):
        open_at(tmp_path, num_val=3)
    write_parquet(tmp_path / "a.parquet", fold=["train", "test", "dev"] * 4)
    with pytest.raises(SettingError, match=r"--data.num-val 3 does not apply"):
        open_at(tmp_path / "a.parquet", num_val=3, split_by="fold")


def test_preparation_of_a_known_data_set_is_not_a_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="do not apply to 'mnist'"):
        open_at(write_idx(tmp_path), name="mnist", size=(28, 28))
    with pytest.raises(SettingError, match=r"--data.fit needs the size"):
        open_at(tmp_path, fit="pad")


def test_a_webdataset_of_names_has_them_as_classes(tmp_path: Path) -> None:
    members = [
        (name, content if name.endswith("png") else (b"cat" if content == b"0" else b"dog"))
        for name, content in webdataset()
    ]
    write_tar(tmp_path / "train.tar", members)
    source = open_at(tmp_path)
    assert source.class_names == ("cat", "dog")
    np.testing.assert_array_equal(read_all(source, "train")[1], np.arange(12) % 2)
