"""The inputs of scoring: files, globs and folders of every form, and what is refused."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.arrays import UInt8Array
from pipeline.artifacts.storage import Storage
from pipeline.contract import AS_IS, ImageSpec, Preparation
from pipeline.data.readers.rows import RowBatch, Rows
from pipeline.data.scoring_inputs import open_input
from pipeline.errors import DataError, UserError
from tests.support.sources import (
    noise,
    write_csv,
    write_idx,
    write_parquet,
    write_pngs,
    write_tar,
)

IMAGE = ImageSpec(6, 6, ("0", "1"), AS_IS)


def open_at(*names: Path | str, image: ImageSpec = IMAGE) -> Rows:
    return open_input(Storage("/nowhere"), [str(name) for name in names], image)


def read_all(rows: Rows, *columns: str) -> RowBatch:
    batch = rows.read(0, rows.num_rows, columns)
    assert not batch.rejects
    return batch


def test_every_form_of_file_is_an_input(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    write_csv(tmp_path / "b.csv", labels=False)
    write_tar(tmp_path / "c.tar")
    np.save(tmp_path / "d.npy", noise(12))
    np.savez(tmp_path / "e.npz", noise(12))
    np.savez(tmp_path / "f.npz", images=noise(12), labels=np.zeros(12))
    write_idx(tmp_path, "g", "labels")
    for name in ("a.parquet", "b.csv", "c.tar", "d.npy", "e.npz", "f.npz", "g"):
        np.testing.assert_array_equal(read_all(open_at(tmp_path / name)).images, noise(12), name)


def test_an_empty_part_is_no_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "part-0.parquet", count=24)
    write_parquet(tmp_path / "part-1.parquet", count=0)
    assert open_at(tmp_path).num_rows == 24
    with pytest.raises(DataError, match="its files have no rows"):
        open_at(tmp_path / "part-1.parquet")


def test_columns_without_code_pass_through(tmp_path: Path) -> None:
    keys = pa.array([uuid.uuid4().bytes for _ in range(12)], pa.uuid())
    rows = open_at(write_parquet(tmp_path / "a.parquet", key=keys))
    batch = read_all(rows, "key")
    assert batch.columns["key"].combine_chunks() == keys


@pytest.mark.parametrize(
    ("axes", "shape"),
    [((0, 2, 1), (12, 6, 6)), (None, (12, 6, 6, 1)), (None, (12, 1, 6, 6))],
)
def test_tensors_are_read_as_numpy_shows_them(tmp_path: Path, axes: Any, shape: Any) -> None:
    array = noise(12).transpose(axes) if axes else noise(12).reshape(shape)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    pq.write_table(pa.table({"image": tensors}), tmp_path / "x.parquet")
    images = read_all(open_at(tmp_path / "x.parquet")).images
    np.testing.assert_array_equal(images, noise(12).transpose(axes) if axes else noise(12))


def test_a_star_stops_at_a_slash_and_at_hidden_names(tmp_path: Path) -> None:
    for name in ("out/a.parquet", "out/rejected/b.parquet", "out/.c.parquet", "in/d.parquet"):
        write_parquet(tmp_path / name)
    paths = [entry.path for entry in open_at(tmp_path / "out" / "*.parquet").files]
    assert paths == ["a.parquet"]
    paths = [entry.path for entry in open_at(tmp_path / "*" / "?.parquet").files]
    assert paths == ["in/d.parquet", "out/a.parquet"]
    with pytest.raises(DataError, match="no file to score has such a name"):
        open_at(tmp_path / "x*")


def test_a_glob_may_match_image_files(tmp_path: Path) -> None:
    write_pngs(tmp_path, ["a", "b"], 3)
    batch = read_all(open_at(tmp_path / "*" / "[01].png"), "path")
    assert batch.columns["path"].to_pylist() == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


def test_a_folder_gives_the_files_with_images_and_says_what_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_idx(tmp_path, "x-images-idx3-ubyte", "x-labels-idx1-ubyte")
    write_parquet(tmp_path / "a.parquet")
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "b.parquet")
    write_csv(tmp_path / "labels.csv", ["path,label", "a.png,cat"])
    write_pngs(tmp_path, ["images"], 2)
    assert [entry.path.rpartition("/")[2] for entry in open_at(tmp_path).files] == [
        "a.parquet",
        "x-images-idx3-ubyte",
    ]
    assert "5 files are skipped, as they hold no images" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_table_beside_image_files_lists_them(tmp_path: Path) -> None:
    write_pngs(tmp_path, ["images"], 2)
    write_csv(tmp_path / "labels.csv", ["path,label", "a.png,cat"])
    assert open_at(tmp_path).num_rows == 2


@pytest.mark.parametrize(
    ("fit", "message"), [("none", "holds images of 8 x 8"), ("stretch", None), ("mass", None)]
)
def test_images_of_another_size_are_refused_unless_the_model_fits_them(
    tmp_path: Path, fit: Any, message: str | None
) -> None:
    np.save(tmp_path / "x.npy", strokes(3, 8))
    image = ImageSpec(6, 6, ("0", "1"), Preparation(fit, "never"))
    if message:
        with pytest.raises(DataError, match=message):
            open_at(tmp_path / "x.npy", image=image)
    else:
        assert read_all(open_at(tmp_path / "x.npy", image=image)).images.shape == (3, 6, 6)


def strokes(count: int, side: int) -> UInt8Array:
    """Return black images (count, side, side) with a white stroke, each at another place."""
    images = np.zeros((count, side, side), np.uint8)
    for number, image in enumerate(images):
        image[1:-1, number + 2] = 255
    return images


def test_a_blank_image_that_cannot_be_centred_is_a_rejected_row(tmp_path: Path) -> None:
    images = strokes(3, 8)
    images[1] = 7
    np.save(tmp_path / "x.npy", images)
    rows = open_at(tmp_path / "x.npy", image=ImageSpec(6, 6, ("0", "1"), Preparation()))
    batch = rows.read(0, 3)
    assert batch.ids.tolist() == [0, 2]
    assert "blank" in batch.rejects[0].reason


def test_large_images_are_fitted_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", noise(9, 0, (60, 60)))
    image = ImageSpec(6, 6, ("0", "1"), Preparation("stretch", "never"))
    whole = read_all(open_at(tmp_path / "x.npy", image=image))
    monkeypatch.setattr("pipeline.data.readers.rows.BYTES_AT_A_TIME", 8 * 60 * 60)
    parts = read_all(open_at(tmp_path / "x.npy", image=image))
    np.testing.assert_array_equal(whole.images, parts.images)
    np.testing.assert_array_equal(whole.ids, parts.ids)


@pytest.mark.parametrize("name", ["nowhere", "no\0where", "x" * 300, "nowhere/*.parquet", ""])
def test_a_name_that_is_no_input_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"--input|Could not read"):
        open_at(f"{tmp_path}/{name}")


def test_an_archive_of_several_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=noise(3), x_test=noise(3))
    with pytest.raises(DataError, match=r"holds the arrays x_train, x_test. Give one with a"):
        open_at(tmp_path / "x.npz")
