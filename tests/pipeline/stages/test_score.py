from __future__ import annotations

import dataclasses
import gc
import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image

from pipeline.artifacts.commit import load
from pipeline.artifacts.manifests import ScoresManifest
from pipeline.artifacts.storage import Storage
from pipeline.cluster.workers import require_workers
from pipeline.config import Score
from pipeline.data.readers import idx_format
from pipeline.data.shards import read_split
from pipeline.errors import ArtifactDamaged, DataError, ResourcesMissing, SettingError
from pipeline.models.predictor import Predictor
from pipeline.stages.score import score
from tests.conftest import Artifacts
from tests.support.sample_data import make_images

IMAGES, _ = make_images(50, seed=5)


def run(artifacts: Artifacts, source: object, output: Path, **settings: Any) -> pa.Table:
    """Score one or several inputs; return all rows of the shards that the manifest lists."""
    scoring = Score(
        root=artifacts.root,
        model=artifacts.model.ref,
        input=source if isinstance(source, tuple) else (str(source),),
        output=str(output),
        **settings,
    )
    manifest = score(scoring)
    assert manifest.rows == sum(entry.rows or 0 for entry in manifest.files)
    shards = [entry.path for entry in manifest.files if not entry.path.startswith("rejected/")]
    return pa.concat_tables([pq.read_table(output / path) for path in shards])


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
    split = read_split(artifacts.storage, artifacts.dataset, "train")
    expected = Predictor(artifacts.storage, artifacts.model).predict(split.images)
    np.testing.assert_array_equal(table["id"], split.ids)
    np.testing.assert_array_equal(table["prediction"], expected.prediction)
    np.testing.assert_allclose(table["confidence"], expected.probabilities.max(axis=1), atol=1e-6)
    probabilities = np.array(table["probabilities"].to_pylist())
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-6)
    assert len(list(tmp_path.glob("part-*.parquet"))) == 4


def test_idx_and_parquet_of_the_same_images_score_alike(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx_format.encode(IMAGES)))
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
    (tmp_path / "out" / "manifest.json").write_bytes(b"{")
    with pytest.raises(ArtifactDamaged, match="is not a valid manifest"):
        run(artifacts, path, tmp_path / "out", rows_per_shard=7)
    run(artifacts, path, tmp_path / "out", rows_per_shard=7, force=True)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"digit": pa.array([b"x"])}, "column `image` is missing"),
        (
            {"image": pa.array([b"x" * 119], pa.binary(119))},
            "have 119 pixels, which is not 12 x 10",
        ),
        ({"image": pa.array([[[1]]])}, "holds images of 1 x 1"),
        ({"image": pa.array(["x"])}, "column `image` is string"),
        ({"image": pa.array([], pa.binary(120))}, "have no rows"),
    ],
)
def test_parquet_that_is_not_images_of_the_model_is_refused(
    artifacts: Artifacts, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = parquet(tmp_path / "bad.parquet", **columns)
    with pytest.raises(DataError, match=message):
        run(artifacts, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rejected_rows_fail_scoring_or_are_set_aside(artifacts: Artifacts, tmp_path: Path) -> None:
    images = pa.array([IMAGES[0].tobytes(), None, IMAGES[2].tobytes()], pa.binary(120))
    path = parquet(tmp_path / "null.parquet", image=images, id=[7, 8, 9])
    with pytest.raises(DataError, match="1 of 3 rows cannot be scored: row 8: the image is null"):
        run(artifacts, path, tmp_path / "out")
    table = run(artifacts, path, tmp_path / "apart", on_bad_row="quarantine")
    manifest = load(Storage(str(tmp_path / "apart")), "", ScoresManifest)
    assert (manifest.rows, manifest.rejected) == (3, 1)
    assert table["id"].to_pylist() == [7, 9]
    (rejects,) = (tmp_path / "apart" / "rejected").iterdir()
    assert pq.read_table(rejects).to_pylist() == [{"id": 8, "reason": "the image is null"}]
    with pytest.raises(DataError, match="1 rows of the scores in .*apart were rejected"):
        run(artifacts, path, tmp_path / "apart")


def test_failed_scoring_releases_its_cpus(artifacts: Artifacts, tmp_path: Path) -> None:
    path = parquet(tmp_path / "null.parquet", image=pa.array([None], pa.binary(120)))
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(DataError):
            run(artifacts, path, tmp_path / "out")
        require_workers(int(ray.cluster_resources()["CPU"]), wait_s=0)
    finally:
        gc.enable()


def test_files_globs_and_folders_are_scored_in_order(artifacts: Artifacts, tmp_path: Path) -> None:
    for number in range(3):
        rows = pa.array([image.tobytes() for image in IMAGES[number * 10 :][:10]], pa.binary(120))
        parquet(tmp_path / f"part-{number}.parquet", image=rows)
    (tmp_path / "more").write_bytes(idx_format.encode(IMAGES[30:]))
    whole = run(artifacts, write(tmp_path / "all"), tmp_path / "a")
    globbed = run(artifacts, tmp_path / "part-*.parquet", tmp_path / "b", rows_per_shard=7)
    assert globbed["prediction"].equals(whole["prediction"][:30])
    names = (str(tmp_path / "part-?.parquet"), str(tmp_path / "more"))
    both = run(artifacts, names, tmp_path / "c", rows_per_shard=13)
    assert both["prediction"].combine_chunks() == whole["prediction"].combine_chunks()
    np.testing.assert_array_equal(both["id"], np.arange(50))


def write(path: Path) -> Path:
    path.write_bytes(idx_format.encode(IMAGES))
    return path


def test_image_files_are_scored_with_their_paths(artifacts: Artifacts, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(IMAGES[:5]):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "5.png").write_bytes(b"not an image")
    options = {"columns": ("path",), "on_bad_row": "quarantine"}
    table = run(artifacts, folder, tmp_path / "out", **options)
    assert table["path"].to_pylist() == [f"images/{number}.png" for number in range(5)]
    expected = Predictor(artifacts.storage, artifacts.model).predict(IMAGES[:5])
    np.testing.assert_array_equal(table["prediction"], expected.prediction)


def test_columns_of_the_input_pass_through(artifacts: Artifacts, tmp_path: Path) -> None:
    names = [f"name {number}" for number in range(50)]
    path = parquet(tmp_path / "images.parquet", image=image_column(), name=names)
    table = run(artifacts, path, tmp_path / "out", columns=("name",), rows_per_shard=13)
    assert table["name"].to_pylist() == names
    with pytest.raises(DataError, match="has no column 'other'"):
        run(artifacts, path, tmp_path / "other", columns=("other",))
    with pytest.raises(SettingError, match="this name is used for a column of scores"):
        run(artifacts, path, tmp_path / "other", columns=("name", "id"))


def test_columns_may_differ_in_width_but_not_in_kind(artifacts: Artifacts, tmp_path: Path) -> None:
    narrow = parquet(tmp_path / "a", image=image_column(), more=pa.array(range(50), pa.int32()))
    wide = parquet(tmp_path / "b", image=image_column(), more=pa.array(range(50), pa.int64()))
    other = parquet(tmp_path / "c", image=image_column(), more=["text"] * 50)
    both = (str(narrow), str(wide))
    table = run(artifacts, both, tmp_path / "out", columns=("more",))
    assert table["more"].to_pylist() == [*range(50), *range(50)]
    with pytest.raises(DataError, match="Columns of the input differ from file to file"):
        run(artifacts, (*both, str(other)), tmp_path / "other", columns=("more",))


def test_a_damaged_shard_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    root = Path(shutil.copytree(artifacts.root, tmp_path / "root"))
    other = dataclasses.replace(artifacts, root=str(root))
    shard = root / "datasets" / artifacts.dataset.ref / artifacts.dataset.shards("test")[0].path
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    for _ in range(2):
        with pytest.raises(ArtifactDamaged, match="its manifest"):
            run(other, f"{artifacts.dataset.ref}/test", tmp_path / "out")
        shard.unlink(missing_ok=True)


def test_scores_of_other_code_or_another_device_are_not_reused(
    artifacts: Artifacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = parquet(tmp_path / "images.parquet", image=image_column())
    run(artifacts, path, tmp_path / "out")
    with pytest.raises(SettingError, match="holds scores of other input, model or settings"):
        run(artifacts, path, tmp_path / "out", device="cuda")
    monkeypatch.setattr("pipeline.stages.score.SCORES_FORMAT", 0)
    with pytest.raises(SettingError, match="or of an older version"):
        run(artifacts, path, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    run(artifacts, path, tmp_path / "out")
    assert "shards already exist" not in capsys.readouterr().err


def test_interrupted_scoring_continues(
    artifacts: Artifacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet(tmp_path / "images.parquet", image=image_column())
    whole = run(artifacts, path, tmp_path / "out", rows_per_shard=10)
    (tmp_path / "out" / "manifest.json").unlink()
    next((tmp_path / "out").glob("*-00003-*.parquet")).unlink()
    assert run(artifacts, path, tmp_path / "out", rows_per_shard=10) == whole
    assert "4 of 5 shards already exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 and no more", "could not be read as a table"),
        (b"neither", "starts with 6e656974"),
        (idx_format.encode(np.zeros((2, 10, 12), np.uint8)), "holds images of 10 x 12"),
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
    with pytest.raises(DataError, match=r"images.parquet could not be read as a table"):
        run(artifacts, path, tmp_path / "out")


def test_a_damaged_model_is_refused_before_scoring(artifacts: Artifacts, tmp_path: Path) -> None:
    root = shutil.copytree(artifacts.root, tmp_path / "root")
    (root / "models" / artifacts.model.ref / "model.onnx").write_bytes(b"")
    other = dataclasses.replace(artifacts, root=str(root))
    with pytest.raises(ArtifactDamaged, match="its manifest says"):
        run(other, f"{artifacts.dataset.ref}/test", tmp_path / "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    path = parquet(tmp_path / "images.parquet", image=image_column())
    with pytest.raises(ResourcesMissing, match="1 GPU was asked for, but the cluster has none"):
        run(artifacts, path, tmp_path / "out", device="cuda")


def test_a_missing_input_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Give files of images"):
        run(artifacts, tmp_path / "nowhere", tmp_path / "out")
