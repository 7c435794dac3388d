"""Routing, authentication and errors of the HTTP application."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from pipeline.arrays import UInt8Array
from pipeline.artifacts.storage import Storage
from pipeline.contract import Predictions
from pipeline.models.predictor import Predictor
from serving import errors, keys
from serving.http.routes import build_routes
from serving.model.batcher import Batcher
from serving.model.watcher import LoadedModel, ModelWatcher
from tests.serving.http.helpers import (
    Client,
    error_message,
    infer_body,
    png,
    publish_and_watch,
    settings,
)
from tests.support.stripes_model import STRIPES, stripe

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v2/models/stripes/infer",
    "query_string": b"",
}


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models/stripes/ready"])
def test_a_model_that_fails_its_self_test_is_not_ready(tmp_path: Path, path: str) -> None:
    class BrokenPredictor(Predictor):
        def predict(self, images: UInt8Array) -> Predictions:
            raise OSError("the device is gone")

    watcher = publish_and_watch(str(tmp_path))
    broken = BrokenPredictor(Storage(str(tmp_path)), watcher.current.model)
    watcher.current = LoadedModel(broken, watcher.current.batcher)
    response = Client(build_routes(watcher, settings("unused"))).get(path)
    assert "fails its self-test" in error_message(response, 503)
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["", "/ready", "/infer"])
@pytest.mark.parametrize("name", ["mnist", "stripes/versions/000000000000", "%2e%2e%2fetc", "é"])
def test_an_unknown_model_is_not_found(client: Client, name: str, path: str) -> None:
    method = "POST" if path == "/infer" else "GET"
    message = error_message(client.request(method, f"/v2/models/{name}{path}"), 404)
    assert "stripes" in message or "No route has this address" in message


@pytest.mark.parametrize("name", ["MODEL", "{model}"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/NAME"),
        ("POST", "/v2/models/NAME/infer"),
        ("POST", "/v2/models/NAME/versions/1/infer"),
        ("POST", "/v1/models/NAME:predict"),
    ],
)
def test_a_placeholder_of_the_route_table_is_not_a_model(
    client: Client, method: str, path: str, name: str
) -> None:
    response = client.request(method, path.replace("NAME", name))
    assert "is not served here" in error_message(response, 404)


@pytest.mark.parametrize("path", ["/v2/model", "/v2/models/stripes/", "/predict/", "/x" * 99])
def test_an_unknown_address_is_not_found(client: Client, path: str) -> None:
    assert "No route has this address" in error_message(client.get(path), 404)


def test_a_wrong_method_is_answered_with_the_allowed_ones(client: Client) -> None:
    response = client.request("PUT", "/predict")
    assert "Send POST" in error_message(response, 405)
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
            "17 rows, but at most 16 are allowed",
        ),
    ],
)
def test_each_error_has_its_status(
    client: Client, path: str, content: bytes, status: int, message: str
) -> None:
    assert message in error_message(client.post(path, content=content), status)


@pytest.mark.parametrize("raw", [False, True])
def test_an_overloaded_server_asks_clients_to_retry(tmp_path: Path, raw: bool) -> None:
    watcher = publish_and_watch(str(tmp_path))
    predictor = watcher.current.predictor
    batcher = Batcher(predictor.predict, max_batch_rows=4, max_queue_rows=2, inline_rows=16)
    watcher.current = LoadedModel(predictor, batcher)
    client = Client(build_routes(watcher, settings("unused")))
    images = np.zeros((3, *STRIPES.shape), np.uint8)
    headers = {"Inference-Header-Content-Length": "0"}
    content: Any = {"content": images.tobytes(), "headers": headers}
    response = client.post(
        "/v2/models/stripes/infer", **(content if raw else {"json": infer_body(images)})
    )
    assert "busy" in error_message(response, 503)
    assert response.headers["retry-after"] == "1"


def test_failed_requests_are_counted_by_error_class(tmp_path: Path) -> None:
    watcher = publish_and_watch(str(tmp_path))
    client = Client(build_routes(watcher, settings("unused")))
    for number in range(50):
        client.get(f"/{number}")
        client.get(f"/v2/models/{number}")
        client.request(f"M{number}", "/predict")
    counts = watcher.current.batcher.statistics.errors
    assert counts == {"AddressUnknown": 50, "ModelUnknown": 50, "MethodUnknown": 50}


def test_a_bug_shows_clients_no_details(tmp_path: Path) -> None:
    def broken(images: UInt8Array) -> Predictions:
        raise OSError("/srv/secret/model.onnx")

    watcher = publish_and_watch(str(tmp_path))
    batcher = Batcher(broken, max_batch_rows=4, max_queue_rows=16, inline_rows=16)
    watcher.current = LoadedModel(watcher.current.predictor, batcher)
    client = Client(build_routes(watcher, settings("unused")))
    assert "secret" not in error_message(client.post("/predict", content=png(stripe(0))), 500)


def test_only_health_and_the_page_need_no_key(watcher: ModelWatcher) -> None:
    digests = (keys.digest(b"one"), keys.digest(b"two"))
    limits = settings("unused").model_copy(update={"api_keys": digests})
    client = Client(build_routes(watcher, limits))
    for path in ("/", "/page.js", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200
    responses = [
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
    assert len({error_message(response, 401) for response in responses}) == 1
    assert {response.headers["www-authenticate"] for response in responses} == {"Bearer"}
    for headers in ({"Authorization": "Bearer one"}, {"X-API-Key": "two"}):
        assert client.request("GET", "/v2/models/stripes", headers=headers).status_code == 200


def test_rows_of_a_client_that_left_are_not_computed(
    watcher: ModelWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests wait for a busy model; the client of the first leaves."""

    def predict(images: UInt8Array) -> Predictions:
        calls.append(len(images))
        assert gate.wait(10)
        return watcher.current.predictor.predict(images)

    async def request(rows: int, left: asyncio.Event) -> int:
        body = np.zeros((rows, *STRIPES.shape), np.uint8).tobytes()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        statuses = list[int]()
        await app({**SCOPE, "headers": [(b"inference-header-content-length", b"0")]}, receive, send)
        return statuses[0]

    async def scenario() -> None:
        leaves, stays = asyncio.Event(), asyncio.Event()
        first = asyncio.ensure_future(request(1, stays))
        while not calls:
            await asyncio.sleep(0.01)
        second, third = (asyncio.ensure_future(request(n, e)) for n, e in ((2, leaves), (3, stays)))
        leaves.set()
        assert await second == 499
        gate.set()
        assert (await first, await third) == (200, 200)

    monkeypatch.setattr("serving.http.bounds.WATCH_S", 0.01)
    calls, gate = list[int](), threading.Event()
    batcher = Batcher(predict, max_batch_rows=8, max_queue_rows=16, inline_rows=0)
    monkeypatch.setattr(watcher, "current", LoadedModel(watcher.current.predictor, batcher))
    app = build_routes(watcher, settings("unused"))
    asyncio.run(scenario())
    assert calls == [1, 3]


def test_a_header_that_is_sent_twice_is_a_list(client: Client) -> None:
    content = json.dumps(infer_body(np.zeros((16, *STRIPES.shape), np.uint8)))
    headers = [("Accept-Encoding", "br"), ("Accept-Encoding", "deflate")]
    response = client.post("/v2/models/stripes/infer", content=content, headers=headers)
    assert response.headers["content-encoding"] == "deflate"


def test_a_background_task_that_fails_starts_again(
    watcher: ModelWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, finished = list[int](), asyncio.Event()

    async def fail_twice() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError
        finished.set()

    async def ignore(message: Any) -> None: ...

    async def live() -> None:
        messages: asyncio.Queue[Any] = asyncio.Queue()
        messages.put_nowait({"type": "lifespan.startup"})
        app = build_routes(watcher, settings("unused"), [fail_twice])
        running = asyncio.ensure_future(app({"type": "lifespan"}, messages.get, ignore))
        await asyncio.wait_for(finished.wait(), 10)
        messages.put_nowait({"type": "lifespan.shutdown"})
        await running

    monkeypatch.setattr("serving.http.application.RESTART_S", 0)
    asyncio.run(live())
    assert len(calls) == 3


def test_every_client_error_has_an_http_status_and_a_grpc_code() -> None:
    for error in errors.RequestError.__subclasses__():
        assert 400 <= error.status < 600
        assert error.grpc_code in grpc.StatusCode.__members__
