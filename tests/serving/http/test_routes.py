from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.types import ASGIApp

from pipeline.arrays import UInt8Array
from pipeline.artifacts.storage import Storage
from pipeline.contract import Predictions
from pipeline.models.predictor import Predictor
from serving import errors, keys
from serving.config import AppSettings
from serving.http.routes import build_routes
from serving.model.batcher import Batcher
from serving.model.watcher import LoadedModel, ModelWatcher
from tests.support.stripes_model import STRIPES, publish, stripe


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> ModelWatcher:
    return serve(str(tmp_path_factory.mktemp("root")))


@pytest.fixture(scope="module")
def predictor(watcher: ModelWatcher) -> Predictor:
    return watcher.current.predictor


def serve(root: str, **model: Any) -> ModelWatcher:
    publish(Storage(root), **model)
    return ModelWatcher(settings(root))


def settings(root: str) -> AppSettings:
    return AppSettings(
        root=root,
        model="stripes/production",
        max_batch_rows=4,
        max_request_rows=16,
        max_queue_rows=16,
        max_body_mib=1,
    )


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
def client(watcher: ModelWatcher) -> Client:
    return Client(build_routes(watcher, settings("unused")))


def png(image: UInt8Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def infer_body(images: UInt8Array, **fields: Any) -> dict[str, Any]:
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


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models/stripes/ready"])
def test_a_model_that_fails_its_self_test_is_not_ready(tmp_path: Path, path: str) -> None:
    class Nothing(Predictor):
        def predict(self, images: UInt8Array) -> Predictions:
            raise OSError("the device is gone")

    watcher = serve(str(tmp_path))
    broken = Nothing(Storage(str(tmp_path)), watcher.current.model)
    watcher.current = LoadedModel(broken, watcher.current.batcher)
    response = Client(build_routes(watcher, settings("unused"))).get(path)
    assert "fails its self-test" in error(response, 503)
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata_has_no_redirect(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.json()["name"] == "ray-onnx-pipeline"


def test_a_model_is_found_by_name_and_by_version(client: Client, predictor: Predictor) -> None:
    path = f"/v2/models/stripes/versions/{predictor.model.version}"
    assert client.get("/v2/models/stripes").json() == client.get(path).json()
    for ready in ("/v2/models/stripes/ready", f"{path}/ready"):
        answer = client.get(ready).json()
        assert answer == {"name": "stripes", "ready": True, "version": predictor.model.version}


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
        "inverted": False,
        "fitted": False,
        "model_name": "stripes",
        "model_version": predictor.model.version,
    }
    assert list(probabilities) == ["left", "middle", "right"]
    assert probabilities["right"] == pytest.approx(np.e**8 / (np.e**8 + 2))


def test_predict_carries_the_models_caveat(tmp_path: Path) -> None:
    watcher = serve(str(tmp_path), caveat="made by hand")
    client = Client(build_routes(watcher, settings("unused")))
    assert client.post("/predict", content=png(stripe(0))).json()["caveat"] == "made by hand"


@pytest.mark.parametrize("path", ["", "/ready", "/infer"])
@pytest.mark.parametrize("name", ["mnist", "stripes/versions/000000000000", "%2e%2e%2fetc", "é"])
def test_an_unknown_model_is_not_found(client: Client, name: str, path: str) -> None:
    method = "POST" if path == "/infer" else "GET"
    message = error(client.request(method, f"/v2/models/{name}{path}"), 404)
    assert "stripes" in message or "nothing at this address" in message


@pytest.mark.parametrize("path", ["/v2/models", "/v2/models/stripes/", "/predict/", "/x" * 99])
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
        ("/predict", b"GIF89a", 415, "neither a PNG nor a JPEG"),
        ("/predict", png(np.zeros((28, 28), np.uint8)), 422, "blank"),
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


@pytest.mark.parametrize("length", ["-1", "1e3", "abc", "99999999999999999999", "\u00b2", "3"])
def test_a_wrong_length_of_the_json_is_refused(client: Client, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    error(client.post("/v2/models/stripes/infer", content=b"{}", headers=headers), 400)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bodies_are_packed_both_ways(client: Client, predictor: Predictor, encoding: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, *STRIPES.shape), np.uint8)
    plain = json.dumps(infer_body(images)).encode()
    packed = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
    headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding}
    response = client.post("/v2/models/stripes/infer", content=packed, headers=headers)
    assert response.headers["content-encoding"] == encoding
    expected = predictor.predict(images).prediction.tolist()
    assert response.json()["outputs"][1]["data"] == expected


@pytest.mark.parametrize(
    ("encoding", "content", "status", "message"),
    [
        ("br", b"{}", 415, "Send gzip, deflate"),
        ("gzip", b"{}", 400, "not gzip"),
        ("deflate", gzip.compress(b"{}"), 400, "not deflate"),
        ("gzip", gzip.compress(b"{}")[:-1], 400, "one whole gzip stream"),
        ("gzip", gzip.compress(b"{}") * 2, 400, "one whole gzip stream"),
        ("gzip", gzip.compress(bytes(2 << 20)), 413, "unpacks to more than 1 MiB"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(
    client: Client, encoding: str, content: bytes, status: int, message: str
) -> None:
    headers = {"Content-Encoding": encoding}
    response = client.post("/v2/models/stripes/infer", content=content, headers=headers)
    assert message in error(response, status)


def test_raw_pixels_are_answered_in_binary_or_json(client: Client, predictor: Predictor) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, *STRIPES.shape), np.uint8)
    expected = predictor.predict(images)
    path, raw = "/v2/models/stripes/infer", {"Inference-Header-Content-Length": "0"}
    binary = client.post(path, content=images.tobytes(), headers=raw)
    size = int(binary.headers["inference-header-content-length"])
    assert binary.headers["content-type"] == "application/octet-stream"
    assert binary.content[size:] == expected.probabilities.tobytes() + expected.prediction.tobytes()
    wish = raw | {"Accept": "application/json"}
    answer = client.post(path, content=images.tobytes(), headers=wish).json()
    assert answer["outputs"][1]["data"] == expected.prediction.tolist()


def test_v1_answers_as_the_predictor(client: Client, predictor: Predictor) -> None:
    image = stripe(1)
    encoded = base64.b64encode(png(image)).decode()
    instances = [image.tolist(), image.ravel().tolist(), {"image": image.tolist()}]
    body = {"instances": [*instances, {"b64": encoded}]}
    answers = client.post("/v1/models/stripes:predict", json=body).json()["predictions"]
    expected = predictor.predict(image[None]).probabilities[0].tolist()
    assert answers == [{"probabilities": expected, "prediction": 1}] * 4
    assert client.get("/v1/models").json() == {"models": ["stripes"]}
    assert client.get("/v1/models/stripes").json()["ready"] is True


@pytest.mark.parametrize(
    ("instances", "status", "message"),
    [
        (None, 400, "Send {.instances.: "),
        ([], 400, "one or more"),
        ([[0] * 23], 400, "23 values"),
        ([{"b64": "?"}], 400, "not base64"),
        ([{"b64": ""}], 400, "empty"),
        ([{"url": "file:///etc/passwd"}], 400, "other fields"),
        ([[0] * 24] * 17, 413, "17 instances"),
    ],
)
def test_what_is_not_a_v1_request_is_refused(
    client: Client, instances: Any, status: int, message: str
) -> None:
    response = client.post("/v1/models/stripes:predict", json={"instances": instances})
    assert re.search(message, error(response, status))


def test_several_pictures_come_as_files_of_a_form(client: Client) -> None:
    big = np.kron(255 - stripe(2), np.ones((20, 20), np.uint8))
    files = [("a", png(stripe(0))), ("b", png(stripe(1))), ("b", png(big))]
    answer = client.post("/predict", files=files).json()
    assert [p["class_name"] for p in answer["predictions"][:2]] == ["left", "middle"]
    assert [(p["inverted"], p["fitted"]) for p in answer["predictions"]] == [
        (False, False),
        (False, False),
        (True, True),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no file"),
        (b"--x\r\n", "Not a form|no file"),
        (b"--y--\r\n", "Not a form|no file"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n', "Not a form"),
    ],
)
def test_what_is_no_form_with_files_is_refused(
    client: Client, content: bytes, message: str
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.post("/predict", content=content, headers=headers)
    assert re.search(message, error(response, 400))


def test_the_files_of_a_form_are_bounded(client: Client) -> None:
    files = [("a", png(stripe(0)))] * 17
    assert "1 to 16 files" in error(client.post("/predict", files=files), 400)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")],
)
def test_the_page_loads_nothing_from_elsewhere(client: Client, path: str, kind: str) -> None:
    response = client.get(path)
    assert response.headers["content-type"].startswith(kind)
    assert response.headers["content-security-policy"] == "default-src 'self'"
    assert "//" not in re.sub(r"^ *//.*|  //.*", "", response.text, flags=re.MULTILINE)


def test_the_index_names_what_is_served(client: Client, predictor: Predictor) -> None:
    (entry,) = client.post("/v2/repository/index").json()
    assert (entry["name"], entry["state"]) == ("stripes", "READY")
    assert entry["version"] == predictor.model.version


def test_statistics_count_requests_and_calls_of_the_model(tmp_path: Path) -> None:
    client = Client(build_routes(serve(str(tmp_path)), settings("unused")))
    body = infer_body(np.zeros((6, *STRIPES.shape), np.uint8))
    client.post("/v2/models/stripes/infer", json=body)
    (stats,) = client.get("/v2/models/stripes/stats").json()["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (6, 2)
    assert stats["inference_stats"]["success"]["count"] == 1
    assert stats["inference_stats"]["fail"]["count"] == 0
    assert stats["inference_stats"]["queue"]["count"] == 1
    assert {batch["batch_size"] for batch in stats["batch_stats"]} == {4, 2}
    assert client.get("/v2/models/stats").json()["model_stats"] == [stats]


@pytest.mark.parametrize("raw", [False, True])
def test_an_overloaded_server_asks_to_come_again(tmp_path: Path, raw: bool) -> None:
    watcher = serve(str(tmp_path))
    predictor = watcher.current.predictor
    batcher = Batcher(predictor.predict, max_batch_rows=4, max_queue_rows=2)
    watcher.current = LoadedModel(predictor, batcher)
    client = Client(build_routes(watcher, settings("unused")))
    images = np.zeros((3, *STRIPES.shape), np.uint8)
    headers = {"Inference-Header-Content-Length": "0"}
    content: Any = {"content": images.tobytes(), "headers": headers}
    response = client.post(
        "/v2/models/stripes/infer", **(content if raw else {"json": infer_body(images)})
    )
    assert "busy" in error(response, 503)
    assert response.headers["retry-after"] == "1"


def test_what_is_asked_in_vain_is_counted_under_few_names(tmp_path: Path) -> None:
    watcher = serve(str(tmp_path))
    client = Client(build_routes(watcher, settings("unused")))
    for number in range(50):
        client.get(f"/{number}")
        client.get(f"/v2/models/{number}")
        client.request(f"M{number}", "/predict")
    found = watcher.current.batcher.statistics.errors
    assert found == {"AddressUnknown": 50, "ModelUnknown": 50, "MethodUnknown": 50}


def test_a_bug_shows_no_trace_to_clients(tmp_path: Path) -> None:
    def broken(images: UInt8Array) -> Predictions:
        raise OSError("/srv/secret/model.onnx")

    watcher = serve(str(tmp_path))
    batcher = Batcher(broken, max_batch_rows=4, max_queue_rows=16)
    watcher.current = LoadedModel(watcher.current.predictor, batcher)
    client = Client(build_routes(watcher, settings("unused")))
    assert "secret" not in error(client.post("/predict", content=png(stripe(0))), 500)


def test_keys_open_all_but_health_and_the_page(watcher: ModelWatcher) -> None:
    digests = (keys.digest(b"one"), keys.digest(b"two"))
    limits = settings("unused").model_copy(update={"api_keys": digests})
    client = Client(build_routes(watcher, limits))
    for path in ("/", "/page.js", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200
    refusals = [
        client.request("GET", "/v2/models/stripes", headers=headers)
        for headers in (
            {},
            {"Authorization": ""},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer three"},
            {"Authorization": "Basic one"},
            {"X-API-Key": digests[0]},
            {"X-API-Key": b"\xff"},
        )
    ]
    assert len({error(response, 401) for response in refusals}) == 1
    assert {response.headers["www-authenticate"] for response in refusals} == {"Bearer"}
    for headers in ({"Authorization": "Bearer one"}, {"X-API-Key": "two"}):
        assert client.request("GET", "/v2/models/stripes", headers=headers).status_code == 200


def test_every_client_error_has_an_http_status_and_a_grpc_code() -> None:
    for error in errors.RequestError.__subclasses__():
        assert 400 <= error.status < 600
        assert error.grpc_code in grpc.StatusCode.__members__
