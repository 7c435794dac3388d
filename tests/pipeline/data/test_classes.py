"""The classes of a source: from the labels and names of all its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Data
from pipeline.data.sources import Source, open_source
from pipeline.errors import DataError
from tests.support.sources import csv_lines, webdataset, write_csv, write_parquet, write_tar


def open_at(path: Path) -> Source:
    return open_source(Data(name="mine", source=str(path)))


def features(*names: str) -> dict[str, Any]:
    """Return the metadata that Hugging Face writes."""
    return {"huggingface": {"info": {"features": {"label": {"names": names}}}}}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 2, 3], ("1", "2", "3")),
        ([7, 300, 65_000], ("7", "300", "65000")),
        (["dog", "cat", "ünï"], ("cat", "dog", "ünï")),
        (["3", "10", "2"], ("2", "3", "10")),
        (["A", "10", "2"], ("10", "2", "A")),
        (pa.array([5, 9, 2**40], pa.uint64()), ("5", "9", str(2**40))),
        (pa.array(["b", "a", "c"]).dictionary_encode(), ("a", "b", "c")),
    ],
)
def test_labels_that_occur_are_classes_of_their_names(
    tmp_path: Path, labels: Any, names: tuple[str, ...]
) -> None:
    column = labels if isinstance(labels, pa.Array) else pa.array(labels)
    column = pa.chunked_array([column] * 4).combine_chunks()
    write_parquet(tmp_path / "train.parquet", label=column)
    source = open_at(tmp_path)
    assert source.class_names == names
    assert source.train_counts == (4, 4, 4)
    batch = source.splits["train"].read(0, 12)
    assert batch.labels is not None
    assert [names[label] for label in batch.labels] == [str(v) for v in column.to_pylist()]


def test_classes_are_those_of_all_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", label=[4] * 12)
    write_parquet(tmp_path / "train-1.parquet", label=[2] * 12)
    write_parquet(tmp_path / "test.parquet", label=[3, 4] * 6)
    source = open_at(tmp_path)
    assert source.class_names == ("2", "3", "4")
    assert source.train_counts == (12, 0, 12)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["7", "A", "10"] * 4, ("10", "7", "A")),
        ([*"0123" * 2, *"ab12"], ("0", "1", "2", "3", "a", "b")),
        (["", "10", "2.0", "02"] * 3, ("2", "10")),
        (["1", "2", "-3", "0.5"] * 3, ("1", "2")),
        (["9" * 30, "1_2"] * 6, ("1_2", "9" * 30)),
    ],
)
@pytest.mark.parametrize("form", ["csv", "tar", "parquet"])
def test_text_is_numbers_if_all_labels_of_all_files_are(
    tmp_path: Path, labels: list[str], names: tuple[str, ...], form: str
) -> None:
    for part in range(2):
        own = labels[6 * part : 6 * part + 6]
        path = tmp_path / f"train-{part}.{form}"
        if form == "csv":
            head, *lines = csv_lines(6, part)
            rows = [f"{label}{line[1:]}" for label, line in zip(own, lines, strict=True)]
            write_csv(path, [head, *rows])
        elif form == "tar":
            members = webdataset(6, part)
            members[1::2] = [(members[2 * i + 1][0], label.encode()) for i, label in enumerate(own)]
            write_tar(path, members)
        else:
            write_parquet(path, 6, part, label=own)
    source = open_at(tmp_path)
    assert source.class_names == names
    batch = source.splits["train"].read(0, 12)
    assert batch.labels is not None
    assert np.bincount(batch.labels).tolist() == list(source.train_counts)
    assert len(batch.rejects) == 12 - sum(source.train_counts)


def test_names_in_other_order_are_refused_with_both(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", metadata=features("cat", "dog"))
    write_parquet(tmp_path / "test.parquet", metadata=features("dog", "cat"))
    with pytest.raises(DataError, match=r"names the classes cat, dog, but .* the classes dog, cat"):
        open_at(tmp_path)


def test_named_classes_without_images_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "train.parquet", label=[1, 3] * 6, metadata=features(*"abcd"))
    source = open_at(tmp_path)
    assert source.class_names == ("b", "d")
    assert "2 classes are left out, as no image has them: a, c" in capsys.readouterr().err


def test_repeated_names_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", metadata={"class_names": ["a", "a"]})
    with pytest.raises(DataError, match="class names in its metadata are repeated: a, a"):
        open_at(tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0] * 12, ["cat"] * 12, "Some labels of the source are numbers, and others text"),
        ([0] * 12, [0] * 12, "has 1 classes, but 2 to 256 are needed"),
        ([0.5] * 12, [0.5] * 12, "has no labels"),
        ([-1] * 12, [-2] * 12, "has 0 classes, but 2 to 256 are needed"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    tmp_path: Path, first: Any, second: Any, message: str
) -> None:
    write_parquet(tmp_path / "train-0.parquet", label=first)
    write_parquet(tmp_path / "train-1.parquet", label=second)
    with pytest.raises(DataError, match=message):
        open_at(tmp_path)


def test_more_labels_than_classes_can_be_fill_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.readers.labels.MAX_LABELS", 10)
    write_parquet(tmp_path / "train.parquet", label=np.arange(12))
    with pytest.raises(DataError, match=r"train.parquet: over 10 different labels"):
        open_at(tmp_path)


def test_a_number_beyond_int64_is_a_rejected_row(tmp_path: Path) -> None:
    labels = pa.array([0, 1] * 5 + [2**63, 2**64 - 1], pa.uint64())
    write_parquet(tmp_path / "train.parquet", label=labels)
    source = open_at(tmp_path)
    assert source.class_names == ("0", "1")
    assert [row.id for row in source.splits["train"].read(0, 12).rejects] == [10, 11]
