"""The figures of a stage: beside its artifact, in a folder for Prometheus, and pushed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Data, Evaluate, Export, Preprocess, Score
from pipeline.data.catalog import ROLES
from pipeline.errors import ArtifactMissing, SettingError
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from pipeline.stages.preprocess import preprocess
from pipeline.stages.score import score
from tests.conftest import Artifacts
from tests.support.local_artifacts import write_dataset, write_run
from tests.support.sample_data import HEIGHT, WIDTH, write_source


class Gateway(ThreadingHTTPServer):
    """Keeps what is pushed to it, as (method, path, text)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Push)
        self.pushed = list[tuple[str, str, str]]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Push(BaseHTTPRequestHandler):
    server: Gateway

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.pushed.append((self.command, self.path, text))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> ModelManifest:
    storage = Storage(str(tmp_path / "root"))
    return export(Export(root=storage.root, run=write_run(storage, write_dataset(storage)).run))


@pytest.fixture
def settings(tmp_path: Path, model: ModelManifest) -> Evaluate:
    return Evaluate(
        root=str(tmp_path / "root"), model=model.ref, metrics_dir=str(tmp_path / "metrics")
    )


def figures(root: object, path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Storage(str(root)).read(path))
    return content


def samples(text: str) -> dict[str, float]:
    """Return the values of metrics, without `pipeline_stage_` before their names."""
    return {
        sample.name.removeprefix("pipeline_stage_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metrics(settings: Evaluate) -> dict[str, float]:
    assert settings.metrics_dir
    return samples(Path(settings.metrics_dir, "pipeline_evaluate.prom").read_text())


def test_figures_lie_beside_the_artifact(tmp_path: Path, model: ModelManifest) -> None:
    left = figures(tmp_path / "root", f"models/{model.ref}/export.figures.json")
    assert left.pop("seconds") > 0
    assert left.pop("started").endswith("+00:00")
    assert left == {
        "stage": "export",
        "exit": 0,
        "rows": 100,
        "rejected": 0,
        "bytes": model.onnx.bytes,
        "nodes": 1,
    }


def test_a_stage_that_had_nothing_to_do_leaves_the_figures_of_the_work(settings: Evaluate) -> None:
    first = evaluate(settings)
    path = f"models/{first.model}/evaluate.figures.json"
    before = figures(settings.root, path)
    assert before["rows"] == 200
    evaluate(settings)
    assert figures(settings.root, path) == before
    assert metrics(settings)["rows"] == 0
    assert metrics(settings)["exit_code"] == 0


def test_a_failure_keeps_the_time_of_the_last_success(settings: Evaluate) -> None:
    evaluate(settings)
    before = metrics(settings)
    assert before["last_success_timestamp_seconds"] == before["last_run_timestamp_seconds"]
    with pytest.raises(ArtifactMissing):
        evaluate(settings.model_copy(update={"model": "bars/0123456789ab"}))
    after = metrics(settings)
    assert after["exit_code"] == 2
    assert after["last_success_timestamp_seconds"] == before["last_success_timestamp_seconds"]
    assert after["last_run_timestamp_seconds"] > before["last_run_timestamp_seconds"]


def test_a_failure_is_noted_where_the_artifact_would_be(settings: Evaluate) -> None:
    shutil.rmtree(Path(settings.root, "datasets/bars/0123456789ab/val"))
    with pytest.raises(Exception, match="val/part"):
        evaluate(settings)
    left = figures(settings.root, f"models/{settings.model}/evaluate.figures.json")
    assert (left["exit"], left["rows"], left["bytes"]) == (2, 200, 0)


def test_metrics_are_told_if_storage_cannot_be_written(settings: Evaluate) -> None:
    folder = Path(settings.root, "models", settings.model)
    (folder / "evaluate.figures.json" / "in the way").mkdir(parents=True)
    evaluate(settings)
    assert metrics(settings)["rows"] == 200


def test_figures_are_pushed(settings: Evaluate, gateway: Gateway) -> None:
    pushed = settings.model_copy(update={"metrics_push": gateway.address, "metrics_job": "nightly"})
    evaluate(pushed)
    with pytest.raises(ArtifactMissing):
        evaluate(pushed.model_copy(update={"model": "bars/0123456789ab"}))
    success, failure = gateway.pushed
    assert success[:2] == failure[:2] == ("POST", "/metrics/job/nightly/stage/evaluate")
    assert samples(success[2])["last_success_timestamp_seconds"] > 0
    # The gateway keeps metrics that a POST does not name.
    assert "last_success_timestamp_seconds" not in samples(failure[2])
    assert samples(failure[2])["exit_code"] == 2


def test_figures_that_cannot_be_left_are_a_warning(
    settings: Evaluate, gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    folder = {"metrics_dir": str(tmp_path / "file/folder"), "force": True}
    evaluate(settings.model_copy(update=folder))
    gateway.server_close()
    evaluate(settings.model_copy(update={"metrics_push": gateway.address}))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == 2
    assert all("the figures of evaluate could not be written" in line for line in warnings)


def test_the_share_of_rejected_rows_is_told(
    ray_session: None, artifacts: Artifacts, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "source")
    # The first image of `train` is one of `test` too.
    paths = [source / ROLES[f"{split}_images"] for split in ("test", "train")]
    test, train = (bytearray(path.read_bytes()) for path in paths)
    train[16 : 16 + HEIGHT * WIDTH] = test[16 : 16 + HEIGHT * WIDTH]
    paths[1].write_bytes(train)
    data = Data(name="bars", source=str(source), on_bad_row="quarantine")
    flags = {"root": str(tmp_path / "root"), "metrics_dir": str(tmp_path / "metrics")}
    dataset = preprocess(Preprocess(data=data, **flags))
    left = figures(flags["root"], f"datasets/{dataset.ref}/preprocess.figures.json")
    assert (left["rejected"], left["nodes"]) == (1, 1)
    assert left["rows"] == sum(dataset.rows.values()) + 1
    text = (tmp_path / "metrics/pipeline_preprocess.prom").read_text()
    assert samples(text)["rejected_ratio"] == pytest.approx(1 / left["rows"])

    output = str(tmp_path / "scores")
    inputs = (f"{artifacts.dataset.ref}/test",)
    scores = score(
        Score(root=artifacts.root, model=artifacts.model.ref, input=inputs, output=output)
    )
    assert figures(output, "score.figures.json")["rows"] == scores.rows
    with pytest.raises(SettingError):
        score(
            Score(
                root=artifacts.root,
                model=artifacts.model.ref,
                input=inputs,
                output=output,
                probabilities=True,
            )
        )
    assert figures(output, "score.figures.json")["exit"] == 0
