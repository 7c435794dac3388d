"""The pipeline on object storage: a real S3 server, and one that fails, stalls and cuts."""

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
from tests.support.s3 import S3, Fault
from tests.support.sample_data import make_images

pytestmark = pytest.mark.usefixtures("ray_session")

MOST: list[Fault] = ["none", "cut reply", "none", "fail", "cut request", "none"]
FAULTS: list[Fault] = ["none", "stall", *(12 * MOST)]


@pytest.fixture(scope="module")
def server(source: Path, artifacts: Artifacts) -> Iterator[S3]:
    with s3.started() as server:
        server.put(source, "source")
        server.put(Path(artifacts.root) / "models", "root/models")
        yield server


def make(server: S3, artifacts: Artifacts, root: str = "root") -> DatasetManifest:
    data = artifacts.data.model_copy(update={"source": server.uri("source")})
    return preprocess(Preprocess(root=server.uri(root), data=data))


def scores(
    server: S3, artifacts: Artifacts, *inputs: str, output: str, rows_per_shard: int = 100
) -> ScoresManifest:
    asked = Score(
        root=server.uri("root"),
        model=artifacts.model.ref,
        input=inputs,
        output=server.uri(output),
        rows_per_shard=rows_per_shard,
    )
    return score(asked)


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_dataset_on_s3_is_that_on_disk(server: S3, artifacts: Artifacts, tmp_path: Path) -> None:
    assert make(server, artifacts) == artifacts.dataset
    folder = f"datasets/{artifacts.dataset.ref}"
    found = contents(server.get(f"root/{folder}", tmp_path))
    assert found == contents(Path(artifacts.root) / folder)


def test_what_lies_on_s3_is_scored_into_s3(
    server: S3, artifacts: Artifacts, tmp_path: Path
) -> None:
    images, _ = make_images(30, seed=3)
    table = pa.table({"image": [image.tobytes() for image in images]})
    for number in range(2):
        part = table.slice(10 * number, 10).replace_schema_metadata({"height": "12", "width": "10"})
        pq.write_table(part, tmp_path / f"{number}.parquet")
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images[20:]):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{number}.png")
    server.put(tmp_path, "input")
    inputs = [server.uri(path) for path in ("input/*.parquet", "input/pictures")]
    inputs.append(server.uri("source/t10k-images-idx3-ubyte"))
    inputs.append(f"{make(server, artifacts).ref}/val")
    manifest = scores(server, artifacts, *inputs, output="scores")
    assert (manifest.rows, manifest.rejected) == (30 + 90 + 100, 0)
    expected = score(
        Score(
            root=artifacts.root,
            model=artifacts.model.ref,
            input=(f"{tmp_path}/*.parquet", f"{tmp_path}/pictures"),
            output=str(tmp_path / "scores"),
        )
    )
    copy = server.get("scores", tmp_path / "copy")
    ours = pa.concat_tables(pq.read_table(path) for path in sorted(copy.glob("part*")))
    theirs = pq.read_table(tmp_path / "scores" / expected.files[0].path)
    np.testing.assert_array_equal(ours["prediction"][:30], theirs["prediction"])
    assert scores(server, artifacts, *inputs, output="scores") == manifest


def until_done(server: S3, artifacts: Artifacts, output: str) -> int:
    """Preprocesses and scores over a bad way, as often as it takes; how often it failed."""
    for failures in range(20):
        try:
            dataset = make(server, artifacts, root=f"{output}-root")
            assert dataset == artifacts.dataset
            scores(server, artifacts, server.uri("source/train-images-idx3-ubyte"), output=output)
            return failures
        except StorageError:
            continue
    raise AssertionError("it never got through")


def test_a_server_that_fails_stalls_and_cuts_damages_nothing(
    server: S3, artifacts: Artifacts, tmp_path: Path
) -> None:
    scores(server, artifacts, server.uri("source/train-images-idx3-ubyte"), output="calm")
    with s3.disturbed(server, FAULTS) as (bad, met):
        failures = until_done(bad, artifacts, "torn")
    print(f"{dict(+met)}, of which {failures} were not mended on the way")
    assert all(met[fault] for fault in FAULTS if fault != "none")
    folder = f"datasets/{artifacts.dataset.ref}"
    torn = contents(server.get(f"torn-root/{folder}", tmp_path / "torn"))
    assert torn == contents(Path(artifacts.root) / folder)
    calm, torn = (
        {
            path: data
            for path, data in contents(server.get(name, tmp_path / f"scores-{name}")).items()
            if path.endswith(".parquet")
        }
        for name in ("calm", "torn")
    )
    assert sorted(torn.values()) == sorted(calm.values())


def test_a_server_that_is_gone_is_an_error_that_names_it(artifacts: Artifacts) -> None:
    with pytest.raises(StorageError, match=r"s3://bucket/source.*127\.0\.0\.1"):
        make(S3(1), artifacts)
