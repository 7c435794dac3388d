"""A cluster that requires a token: submit a run and deploy its model, as an operator does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from pipeline.artifacts.commit import load
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.registry import find_model
from pipeline.artifacts.storage import Storage
from pipeline.data.shards import read_split
from pipeline.models.predictor import Predictor
from tests.support import cluster_head
from tests.support.cluster_head import BIN, Head
from tests.support.processes import wait_for

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with cluster_head.started(tmp_path_factory.mktemp("root")) as started:
        yield started


def status(url: str) -> int:
    """Return the HTTP status, or 0 without a connection."""
    try:
        return requests.get(url, timeout=5).status_code
    except requests.ConnectionError:
        return 0


def test_a_submitted_run_writes_a_model_that_can_be_deployed(head: Head, source: Path) -> None:
    flags = ("--data.name", "bars", "--data.source", source, "--train.epochs", "30")
    completed = head.submit("run", "fast", *flags, "--train.num-workers", "2").run()
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "accuracy on test" in completed.stdout
    assert head.jobs()[-1]["status"] == "SUCCEEDED"
    storage = Storage(str(head.root))
    model = find_model(storage, "bars/production")

    start = ("start", "-a", head.gcs, "--http-host", "127.0.0.1", "--http-port", head.serve_port)
    for args in (start, ("deploy", REPOSITORY / "infra/serve.yaml", "-a", head.address)):
        deployed = head.command(BIN / "serve", *args).run()
        assert deployed.returncode == 0, deployed.stderr
    url = f"http://127.0.0.1:{head.serve_port}/v2/models/bars"
    wait_for(lambda: status(f"{url}/ready") == 200)
    dataset = load(storage, f"datasets/{model.dataset}", DatasetManifest)
    images = read_split(storage, dataset, "test").images[:5]
    data = {"datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    body = {"inputs": [{"name": "image", **data}]}
    answer = requests.post(f"{url}/infer", json=body, timeout=30).json()
    expected = Predictor(storage, model).predict(images)
    np.testing.assert_array_equal(answer["outputs"][1]["data"], expected.prediction)
    assert answer["model_version"] == model.version
