"""The pipeline on object storage: an S3 server, and a proxy that injects faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.artifacts.manifests import DatasetManifest, ScoresManifest
from pipeline.config import Preprocess, Score
from pipeline.errors import StorageError
from pipeline.stages.preprocess import preprocess
from pipeline.stages.score import score
from tests.conftest import Artifacts
from tests.support import s3
from tests.support.folders import contents
from tests.support.s3 import S3, Fault
from tests.support.sample_data import make_images

pytestmark = pytest.mark.usefixtures("ray_session")

CYCLE: list[Fault] = ["none", "cut reply", "none", "fail", "cut request", "none"]
FAULTS: list[Fault] = ["none", "stall", *(12 * CYCLE)]


@pytest.fixture(scope="module")
def server(source: Path, artifacts: Artifacts) -> Iterator[S3]:
    with s3.started() as server:
        server.put(source, "source")
        server.put(Path(artifacts.root) / "models", "root/models")
        yield server


def preprocess_from(server: S3, artifacts: Artifacts, root: str = "root") -> DatasetManifest:
    data = artifacts.data.model_copy(update={"source": server.uri("source")})
    return preprocess(Preprocess(root=server.uri(root), data=data))


def score_to(
    server: S3, artifacts: Artifacts, *inputs: str, output: str, rows_per_shard: int = 100
) -> ScoresManifest:
    settings = Score(
        root=server.uri("root"),
        model=artifacts.model.ref,
        input=inputs,
        output=server.uri(output),
        rows_per_shard=rows_per_shard,
    )
    return score(settings)


def test_a_dataset_on_s3_equals_one_on_disk(
    server: S3, artifacts: Artifacts, tmp_path: Path
) -> None:
    assert preprocess_from(server, artifacts) == artifacts.dataset
    folder = f"datasets/{artifacts.dataset.ref}"
    downloaded = contents(server.get(f"root/{folder}", tmp_path))
    assert downloaded == contents(Path(artifacts.root) / folder)


def test_inputs_on_s3_are_scored_to_an_output_on_s3(
    server: S3, artifacts: Artifacts, tmp_path: Path
) -> None:
    images, _ = make_images(30, seed=3)
    table = pa.table({"image": [image.tobytes() for image in images]})
    for number in range(2):
        rows = table.slice(10 * number, 10).replace_schema_metadata({"height": "12", "width": "10"})
        pq.write_table(rows, tmp_path / f"{number}.parquet")
    (tmp_path / "folder").mkdir()
    for number, image in enumerate(images[20:]):
        Image.fromarray(image).save(tmp_path / "folder" / f"{number}.png")
    server.put(tmp_path, "input")
    inputs = [server.uri(path) for path in ("input/*.parquet", "input/folder")]
    inputs.append(server.uri("source/t10k-images-idx3-ubyte"))
    inputs.append(f"{preprocess_from(server, artifacts).ref}/val")
    manifest = score_to(server, artifacts, *inputs, output="scores")
    assert (manifest.rows, manifest.rejected) == (30 + 90 + 100, 0)
    expected = score(
        Score(
            root=artifacts.root,
            model=artifacts.model.ref,
            input=(f"{tmp_path}/*.parquet", f"{tmp_path}/folder"),
            output=str(tmp_path / "scores"),
        )
    )
    copy = server.get("scores", tmp_path / "copy")
    on_s3 = pa.concat_tables(pq.read_table(path) for path in sorted(copy.glob("part*")))
    on_disk = pq.read_table(tmp_path / "scores" / expected.files[0].path)
    np.testing.assert_array_equal(on_s3["prediction"][:30], on_disk["prediction"])
    assert score_to(server, artifacts, *inputs, output="scores") == manifest


def retry_until_complete(server: S3, artifacts: Artifacts, output: str) -> int:
    """Preprocess and score, repeated after every StorageError; return how many there were."""
    for failures in range(20):
        try:
            dataset = preprocess_from(server, artifacts, root=f"{output}-root")
            assert dataset == artifacts.dataset
            score_to(server, artifacts, server.uri("source/train-images-idx3-ubyte"), output=output)
            return failures
        except StorageError:
            continue
    raise AssertionError("20 attempts failed")


def test_connection_faults_damage_no_artifact(
    server: S3, artifacts: Artifacts, tmp_path: Path
) -> None:
    score_to(server, artifacts, server.uri("source/train-images-idx3-ubyte"), output="undisturbed")
    with s3.disturbed(server, FAULTS) as (proxy, injected):
        failures = retry_until_complete(proxy, artifacts, "disturbed")
    print(f"{dict(+injected)}; {failures} attempts failed")
    assert all(injected[fault] for fault in FAULTS if fault != "none")
    folder = f"datasets/{artifacts.dataset.ref}"
    dataset = contents(server.get(f"disturbed-root/{folder}", tmp_path / "disturbed"))
    assert dataset == contents(Path(artifacts.root) / folder)
    undisturbed, disturbed = (
        {
            path: data
            for path, data in contents(server.get(name, tmp_path / f"scores-{name}")).items()
            if path.endswith(".parquet")
        }
        for name in ("undisturbed", "disturbed")
    )
    assert sorted(disturbed.values()) == sorted(undisturbed.values())


def test_an_unreachable_server_is_an_error_that_names_it(artifacts: Artifacts) -> None:
    with pytest.raises(StorageError, match=r"s3://bucket/source.*127\.0\.0\.1"):
        preprocess_from(S3(1), artifacts)
