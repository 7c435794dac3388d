import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.types import ASGIApp

from pipeline.predictor import Predictions, Predictor
from pipeline.registry import find_model
from pipeline.storage import Storage
from serving import errors
from serving.batching import Batcher
from serving.protocol import Images
from serving.routes import STATUS, build_routes
from serving.settings import AppSettings
from tests.models import STRIPES, publish, stripe

SETTINGS = AppSettings(max_body_mib=1, max_request_rows=16)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    storage = Storage(str(tmp_path_factory.mktemp("root")))
    publish(storage)
    return Predictor(storage, find_model(storage, "stripes/production"))


@dataclass(frozen=True)
class Client:
    """Asks the application itself, without a server between."""

    app: ASGIApp

    def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **content)

        return asyncio.run(send())

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self.request("POST", path, **content)


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[Client]:
    batcher = Batcher(predictor.predict, max_batch_rows=4, max_queue_rows=16)
    yield Client(build_routes(predictor.model, batcher.predict, SETTINGS))
    batcher.close()


def png(image: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def infer_body(images: Images, **fields: Any) -> dict[str, Any]:
    data = {"datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    return {"inputs": [{"name": "image", **data}], **fields}


def error(response: Any, status: int) -> str:
    """The message of an error, which has exactly one form."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    return str(response.json()["error"])


def test_health(client: Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata_has_no_redirect(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.json()["name"] == "ray-onnx-pipeline"


def test_a_model_is_found_by_name_and_by_version(client: Client, predictor: Predictor) -> None:
    path = f"/v2/models/stripes/versions/{predictor.model.version}"
    assert client.get("/v2/models/stripes").json() == client.get(path).json()
    for ready in ("/v2/models/stripes/ready", f"{path}/ready"):
        assert client.get(ready).json() == {"name": "stripes", "ready": True}


@pytest.mark.parametrize("version", ["", "/versions/{}"])
def test_infer_answers_as_the_predictor(client: Client, predictor: Predictor, version: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, *STRIPES.shape), np.uint8)
    expected = predictor.predict(images)
    path = f"/v2/models/stripes{version.format(predictor.model.version)}/infer"
    response = client.post(path, json=infer_body(images, id="seven"))
    answer = response.json()
    probabilities, prediction = answer["outputs"]
    assert response.headers["content-type"] == "application/json"
    assert (answer["id"], answer["model_version"]) == ("seven", predictor.model.version)
    np.testing.assert_array_equal(probabilities["data"], expected.probabilities.ravel())
    np.testing.assert_array_equal(prediction["data"], expected.prediction)


def test_more_rows_than_a_batch_come_back_in_order(client: Client) -> None:
    labels = [k % 3 for k in range(16)]
    images = np.stack([stripe(k) for k in labels])
    answer = client.post("/v2/models/stripes/infer", json=infer_body(images)).json()
    assert answer["outputs"][1]["data"] == labels


def test_predict_names_the_class_of_a_picture(client: Client, predictor: Predictor) -> None:
    answer = client.post("/predict", content=png(stripe(2))).json()
    probabilities = answer.pop("probabilities")
    assert answer == {
        "prediction": 2,
        "class_name": "right",
        "model_name": "stripes",
        "model_version": predictor.model.version,
    }
    assert list(probabilities) == ["left", "middle", "right"]
    assert probabilities["right"] == pytest.approx(np.e**8 / (np.e**8 + 2))


def test_predict_carries_the_models_caveat(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    model = publish(storage, caveat="made by hand")
    batcher = Batcher(Predictor(storage, model).predict, max_batch_rows=4, max_queue_rows=16)
    client = Client(build_routes(model, batcher.predict, SETTINGS))
    assert client.post("/predict", content=png(stripe(0))).json()["caveat"] == "made by hand"
    batcher.close()


@pytest.mark.parametrize("path", ["", "/ready", "/infer"])
@pytest.mark.parametrize("name", ["mnist", "stripes/versions/000000000000", "%2e%2e%2fetc", "é"])
def test_an_unknown_model_is_not_found(client: Client, name: str, path: str) -> None:
    method = "POST" if path == "/infer" else "GET"
    message = error(client.request(method, f"/v2/models/{name}{path}"), 404)
    assert "stripes" in message or "nothing at this address" in message


@pytest.mark.parametrize("path", ["/", "/v2/models", "/v2/models/stripes/", "/predict/", "/x" * 99])
def test_an_unknown_address_is_not_found(client: Client, path: str) -> None:
    assert "nothing at this address" in error(client.get(path), 404)


def test_a_wrong_method_is_told_the_right_one(client: Client) -> None:
    response = client.request("PUT", "/predict")
    assert "Send POST" in error(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "content", "status", "message"),
    [
        ("/predict", b"", 400, "empty"),
        ("/predict", b"GIF89a", 415, "not a PNG"),
        ("/predict", png(np.zeros((28, 28), np.uint8)), 422, "28 wide and 28 high"),
        ("/predict", png(stripe(0))[:50], 422, "damaged"),
        ("/v2/models/stripes/infer", b"{", 400, "not JSON"),
        (
            "/v2/models/stripes/infer",
            json.dumps(infer_body(np.zeros((17, 4, 6), np.uint8))).encode(),
            413,
            "17 rows, but one may have 16",
        ),
    ],
)
def test_each_error_has_its_status(
    client: Client, path: str, content: bytes, status: int, message: str
) -> None:
    assert message in error(client.post(path, content=content), status)


@pytest.mark.parametrize("path", ["/predict", "/v2/models/stripes/infer"])
def test_a_body_is_bounded_as_declared_and_as_it_streams(client: Client, path: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 16)

    assert "larger than 1 MiB" in error(client.post(path, content=bytes((1 << 20) + 1)), 413)
    assert "larger than 1 MiB" in error(client.post(path, content=endless()), 413)


@pytest.mark.parametrize(
    "headers", [{"Content-Encoding": "gzip"}, {"Inference-Header-Content-Length": "10"}]
)
def test_what_is_not_understood_is_said_so(client: Client, headers: dict[str, str]) -> None:
    error(client.post("/v2/models/stripes/infer", content=b"{}", headers=headers), 415)


def test_an_overloaded_server_asks_to_come_again(predictor: Predictor) -> None:
    batcher = Batcher(predictor.predict, max_batch_rows=4, max_queue_rows=2)
    client = Client(build_routes(predictor.model, batcher.predict, SETTINGS))
    body = infer_body(np.zeros((3, *STRIPES.shape), np.uint8))
    response = client.post("/v2/models/stripes/infer", json=body)
    assert "busy" in error(response, 503)
    assert response.headers["retry-after"] == "1"
    batcher.close()


def test_a_bug_shows_no_trace_to_clients(predictor: Predictor) -> None:
    async def broken(images: Images) -> Predictions:
        raise OSError("/srv/secret/model.onnx")

    client = Client(build_routes(predictor.model, broken, SETTINGS))
    assert "secret" not in error(client.post("/predict", content=png(stripe(0))), 500)


def test_every_error_of_a_client_has_a_status() -> None:
    assert set(STATUS) == set(errors.RequestError.__subclasses__())
