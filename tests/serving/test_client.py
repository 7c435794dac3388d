"""The Python client against a server that refuses, fails and cuts connections."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

import serving.client
from pipeline.artifacts.storage import Storage
from pipeline.contract import Predictions
from serving.client import AsyncClient, Client, ServerError
from serving.config import AppSettings
from serving.http.routes import build_routes
from serving.keys import digest
from serving.model.watcher import ModelWatcher
from tests.support.stripes_model import publish, stripe

IMAGES = np.stack([stripe(k % 3) for k in range(5)])


class FailingApp:
    """Answers the first requests with these statuses, then calls `app`; 0 cuts the connection."""

    def __init__(self, app: ASGIApp, statuses: list[int]) -> None:
        self._app = app
        self.statuses = statuses
        self.num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.num_requests += 1
        if not self.statuses:
            await self._app(scope, receive, send)
        elif status := self.statuses.pop(0):
            headers = [(b"retry-after", b"0")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"not JSON"})
        else:
            # Declare nine bytes, and send none.
            headers = [(b"content-length", b"9")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            raise ConnectionAbortedError


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> ASGIApp:
    root = str(tmp_path_factory.mktemp("root"))
    publish(Storage(root))
    settings = AppSettings(root=root, model="stripes/production")
    return build_routes(ModelWatcher(settings), settings)


@contextmanager
def failing_server(app: ASGIApp, *statuses: int) -> Iterator[tuple[str, FailingApp]]:
    """Run a FailingApp in a thread; yield its address and the app."""
    failing_app = FailingApp(app, list(statuses))
    server = uvicorn.Server(uvicorn.Config(failing_app, log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", failing_app
        finally:
            server.should_exit = True
            thread.join()


def predict(url: str, *, asynchronous: bool, attempts: int) -> Predictions:
    async def predict_async() -> Predictions:
        async with AsyncClient(url, model="stripes", attempts=attempts) as client:
            return await client.predict(IMAGES)

    if asynchronous:
        return asyncio.run(predict_async())
    with Client(url, model="stripes", attempts=attempts) as client:
        return client.predict(IMAGES)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failed_request_is_sent_again(app: ASGIApp, asynchronous: bool) -> None:
    with failing_server(app, 503, 0, 429, 500) as (url, server):
        predictions = predict(url, asynchronous=asynchronous, attempts=5)
        assert predictions.prediction.tolist() == [0, 1, 2, 0, 1]
        assert server.num_requests == 5


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (0, 3), (400, 1), (404, 1)])
def test_a_request_that_keeps_failing_is_an_error(
    app: ASGIApp, asynchronous: bool, status: int, attempts: int
) -> None:
    with failing_server(app, *[status] * 9) as (url, server):
        with pytest.raises(ServerError) as error:
            predict(url, asynchronous=asynchronous, attempts=3)
        assert error.value.status == status
        assert server.num_requests == attempts


@pytest.mark.parametrize("asynchronous", [False, True])
def test_all_attempts_together_have_a_deadline(app: ASGIApp, asynchronous: bool) -> None:
    """Use clients without a block, too."""

    async def predict_async() -> None:
        client = AsyncClient(url, model="stripes", deadline_s=0.5, attempts=10_000)
        try:
            await client.predict(IMAGES)
        finally:
            await client.aclose()

    def predict() -> None:
        if asynchronous:
            asyncio.run(predict_async())
        with closing(Client(url, model="stripes", deadline_s=0.5, attempts=10_000)) as client:
            client.predict(IMAGES)

    with failing_server(app, *[503] * 10_000) as (url, _):
        started = time.monotonic()
        with pytest.raises(ServerError, match=r"did not answer within 0\.5 s"):
            predict()
        assert time.monotonic() - started < 5


def test_the_first_error_cancels_the_other_requests_of_a_call(app: ASGIApp) -> None:
    async def predict_many(url: str) -> None:
        async with AsyncClient(url, model="stripes", max_rows=1, attempts=1) as client:
            await client.predict(np.concatenate([IMAGES] * 20))

    with failing_server(app, 200, 400) as (url, server):
        server.statuses[0] = 400
        with pytest.raises(ServerError):
            asyncio.run(predict_many(url))
        assert server.num_requests <= AsyncClient.MAX_AT_ONCE + 2


def test_requests_are_made_as_they_are_sent() -> None:
    """Copy no more of the images than the requests under way hold."""
    client = AsyncClient("http://test", model="stripes", max_rows=1)
    requests = client._requests(np.zeros((1000, 1000, 1000), np.uint8))
    tracemalloc.start()
    next(requests)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_the_example_in_the_docstring_runs(
    app: ASGIApp, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (serving.client.__doc__ or "").splitlines()
    example = dedent("\n".join(line for line in lines if line.startswith("    ") or not line))
    with failing_server(app) as (url, _):
        example = example.replace("http://127.0.0.1:8000", url)
        exec(example.replace("mnist", "stripes").replace("28, 28", "4, 6"), {})
    assert capsys.readouterr().out == "[0 0 0]\n"


def test_an_unreachable_server_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ServerError, match="cannot be reached"):
        predict(url, asynchronous=False, attempts=2)


@pytest.mark.parametrize("images", [np.zeros((2, 4, 6)), np.zeros((4, 6), np.uint8), IMAGES[:0]])
def test_only_images_of_uint8_are_sent(
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> None:
    with (
        Client("http://127.0.0.1:1", model="stripes") as client,
        pytest.raises(ValueError, match="images must be uint8"),
    ):
        client.predict(images)


def test_the_api_key_is_sent(tmp_path: Path) -> None:
    publish(Storage(str(tmp_path)))
    settings = AppSettings(
        root=str(tmp_path), model="stripes/production", api_keys=(digest(b"secret"),)
    )
    with failing_server(build_routes(ModelWatcher(settings), settings)) as (url, _):
        with Client(url, model="stripes", api_key="secret") as client:
            assert len(client.predict(IMAGES).prediction) == 5
        with Client(url, model="stripes") as client, pytest.raises(ServerError, match="API key"):
            client.predict(IMAGES)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_loopback_is_asked_without_a_proxy(
    app: ASGIApp, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with failing_server(app) as (url, _):
        predictions = predict(url, asynchronous=asynchronous, attempts=1)
    assert predictions.prediction.tolist() == [0, 1, 2, 0, 1]
