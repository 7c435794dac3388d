from __future__ import annotations

import dataclasses
import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import idx
from pipeline.config import Score
from pipeline.contract import ArtifactDamaged, DataError, SettingError
from pipeline.predictor import Predictor
from pipeline.score import score
from tests.conftest import Artifacts
from tests.data import make_images

IMAGES, _ = make_images(50, seed=5)


def run(artifacts: Artifacts, source: object, output: Path, **settings: Any) -> pa.Table:
    """Scores `source` and returns all rows of the shards that the manifest lists."""
    asked = Score(
        root=artifacts.root,
        model=artifacts.model.ref,
        input=str(source),
        output=str(output),
        **settings,
    )
    manifest = score(asked)
    assert manifest.rows == sum(entry.rows or 0 for entry in manifest.files)
    return pa.concat_tables([pq.read_table(output / entry.path) for entry in manifest.files])


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=8)
    return path


def image_column() -> pa.Array:
    return pa.array([image.tobytes() for image in IMAGES], pa.binary(120))


def test_a_split_is_scored_as_the_predictor_predicts(artifacts: Artifacts, tmp_path: Path) -> None:
    table = run(
        artifacts,
        f"{artifacts.dataset.ref}/train",
        tmp_path,
        rows_per_shard=150,
        probabilities=True,
    )
    images, _ = make_images(600, seed=1)
    expected = Predictor(artifacts.storage, artifacts.model).predict(images[:500])
    np.testing.assert_array_equal(table["id"], np.arange(500))
    np.testing.assert_array_equal(table["prediction"], expected.prediction)
    np.testing.assert_allclose(table["confidence"], expected.probabilities.max(axis=1), atol=1e-6)
    probabilities = np.array(table["probabilities"].to_pylist())
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-6)
    assert len(list(tmp_path.glob("part-*.parquet"))) == 4


def test_idx_and_parquet_of_the_same_images_score_alike(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx.write(IMAGES)))
    plain = run(artifacts, tmp_path / "images.gz", tmp_path / "a", rows_per_shard=13)
    ids = np.arange(100, 150)
    path = parquet(tmp_path / "images.parquet", id=ids, image=image_column(), other=ids)
    named = run(artifacts, path, tmp_path / "b", rows_per_shard=13)
    np.testing.assert_array_equal(plain["id"], np.arange(50))
    np.testing.assert_array_equal(named["id"], ids)
    assert plain["prediction"].equals(named["prediction"])


def test_scoring_again_finds_the_scores_and_other_scores_are_kept(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    path = parquet(tmp_path / "images.parquet", image=image_column())
    run(artifacts, path, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    run(artifacts, path, tmp_path / "out")
    with pytest.raises(SettingError, match="holds scores of other input, model or settings"):
        run(artifacts, path, tmp_path / "out", rows_per_shard=7)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    run(artifacts, path, tmp_path / "out", rows_per_shard=7, force=True)
    shards = (tmp_path / "out").glob("*.parquet")
    assert sum(pq.read_table(shard).num_rows for shard in shards) == 50


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": pa.array([b"x"])}, "column `image` is missing"),
        ({"image": pa.array([b"x" * 119], pa.binary(119))}, r"is fixed_size_binary\[119\]"),
        ({"image": pa.array([[1]])}, r"column `image` is list"),
        ({"image": pa.array([], pa.binary(120))}, "has no rows"),
        ({"image": pa.array([b"x" * 120], pa.binary(120)), "id": ["a"]}, "column `id` is string"),
    ],
)
def test_parquet_that_is_not_images_of_the_model_is_refused(
    artifacts: Artifacts, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = parquet(tmp_path / "bad.parquet", **columns)
    with pytest.raises(DataError, match=message):
        run(artifacts, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_null_image_is_refused_in_the_words_of_the_input(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    images = pa.array([bytes(120), None], pa.binary(120))
    with pytest.raises(DataError, match="Column `image` of the input has nulls"):
        run(artifacts, parquet(tmp_path / "null.parquet", image=images), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 and no more", "is not a whole Parquet file"),
        (b"neither", "starts with 6e656974"),
        (idx.write(np.zeros((2, 10, 12), np.uint8)), "holds images of 10 x 12"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    artifacts: Artifacts, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=message):
        run(artifacts, tmp_path / "file", tmp_path / "out")


def test_a_damaged_page_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    path = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": image_column()}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[60:2000] = bytes(1940)
    path.write_bytes(data)
    with pytest.raises(DataError, match="Rows of the input could not be read"):
        run(artifacts, path, tmp_path / "out")


def test_a_damaged_model_is_refused_before_scoring(artifacts: Artifacts, tmp_path: Path) -> None:
    root = shutil.copytree(artifacts.root, tmp_path / "root")
    (root / "models" / artifacts.model.ref / "model.onnx").write_bytes(b"")
    other = dataclasses.replace(artifacts, root=str(root))
    with pytest.raises(ArtifactDamaged, match="its manifest says"):
        run(other, f"{artifacts.dataset.ref}/test", tmp_path / "out")


def test_an_input_that_is_not_there_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Give a Parquet file, an IDX file"):
        run(artifacts, tmp_path / "nowhere", tmp_path / "out")
