"""The server as users start it: a separate process that starts its own Ray."""

from __future__ import annotations

import io
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from pipeline.artifacts.storage import Storage
from pipeline.models.predictor import Predictor
from pipeline.process import environment
from tests.support.processes import runs_without_error, wait_for
from tests.support.servers import Server, serving, started
from tests.support.stripes_model import STRIPES, publish, stripe


def startup_error(root: Path, *flags: str) -> str:
    """Return the only line that a server prints which does not start."""
    completed = serving("--root", root, *flags).run()
    assert completed.returncode == 2
    assert completed.stdout == ""
    assert completed.stderr.count("\n") == 1
    return completed.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server whose folder for temporary files has the longest path that is allowed."""
    root = tmp_path_factory.mktemp("root")
    prefix = "x" * (environment.MAX_FOLDER_BYTES - len("/tmp/12345678"))
    with (
        TemporaryDirectory(prefix=prefix, dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
        (root / "stderr").open("w") as stderr,
    ):
        patch.setenv("TMPDIR", folder)
        with started(str(root), stderr=stderr) as server:
            yield server


def infer(server: Server, images: Any) -> Any:
    data = {"datatype": "UINT8", "shape": list(images.shape), "data": images.tolist()}
    body = {"inputs": [{"name": "image", **data}]}
    return requests.post(server.url("/v2/models/stripes/infer"), json=body, timeout=30)


def test_the_ready_line_names_model_and_address(server: Server) -> None:
    assert server.line.startswith(f"serving {server.model.ref} at http://127.0.0.1:")


def test_the_logs_are_where_the_server_says(server: Server) -> None:
    stderr = Path(server.storage.root, "stderr")
    wait_for(lambda: "logs are in" in stderr.read_text())
    assert "is used instead" not in stderr.read_text()
    (logs,) = re.findall(r"logs are in (\S+)\)", stderr.read_text())
    assert list(Path(logs).glob("replica_*"))


def test_the_metadata_name_server_and_version(server: Server) -> None:
    assert requests.get(server.url("/v2"), timeout=30).json()["name"] == "ray-onnx-pipeline"
    model = requests.get(server.url("/v2/models/stripes"), timeout=30).json()
    assert model["versions"] == [server.model.version]


def test_infer_returns_the_predictions_of_the_model(server: Server) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, *STRIPES.shape), np.uint8)
    expected = Predictor(server.storage, server.model).predict(images)
    probabilities, prediction = infer(server, images).json()["outputs"]
    np.testing.assert_array_equal(probabilities["data"], expected.probabilities.ravel())
    np.testing.assert_array_equal(prediction["data"], expected.prediction)


def test_predict_accepts_a_png(server: Server) -> None:
    file = io.BytesIO()
    Image.fromarray(stripe(1)).save(file, "PNG")
    answer = requests.post(server.url("/predict"), data=file.getvalue(), timeout=30).json()
    assert (answer["prediction"], answer["class_name"]) == (1, "middle")


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/nothing", 0, 404),
        ("/v2/models/other/infer", 0, 404),
        ("/predict", 10, 415),
        ("/predict", 17 << 20, 413),
    ],
)
def test_all_errors_have_one_format(server: Server, path: str, size: int, status: int) -> None:
    response = requests.post(server.url(path), data=bytes(size), timeout=30)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]


def test_concurrent_clients_get_their_own_answers(server: Server) -> None:
    def ask(k: int) -> None:
        images = np.stack([stripe((k + i) % 3) for i in range(k + 1)])
        answers[k] = infer(server, images).json()["outputs"][1]["data"]

    answers: dict[int, list[int]] = {}
    threads = [threading.Thread(target=ask, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {k: [(k + i) % 3 for i in range(k + 1)] for k in range(12)}


def test_sigterm_ends_the_server_and_all_its_processes(server: Server) -> None:
    assert server.command.running()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=30) == 0
    assert server.process.stdout is not None
    assert server.process.stdout.read() == ""
    assert server.command.running() == []


def test_an_unknown_model_is_reported_in_one_line(tmp_path: Path) -> None:
    message = startup_error(tmp_path, "--model", "stripes/production")
    assert "'stripes' has no alias 'production'" in message


def test_a_damaged_model_is_reported_in_one_line(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    model = publish(storage)
    storage.write(f"models/{model.ref}/model.onnx", b"not a model")
    assert "its manifest says" in startup_error(tmp_path, "--model", model.ref)


def test_a_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    model = publish(Storage(str(tmp_path)))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        message = startup_error(tmp_path, "--model", model.ref, "--port", port)
    assert f"Cannot listen at --host 127.0.0.1 --port {port}" in message


def test_a_wrong_setting_is_reported_in_one_line(tmp_path: Path) -> None:
    assert "--num-replicas is 0" in startup_error(tmp_path, "--num-replicas", "0")


def test_the_annotations_of_the_builder_are_classes_as_serve_run_needs() -> None:
    assert runs_without_error(
        "from serving.app import build_app as f; f.__annotations__['settings'].__mro__"
    )
