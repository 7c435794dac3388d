"""Promotions that ask a server whether it took them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from pipeline.artifacts.storage import Storage
from pipeline.config import Promote
from pipeline.errors import ModelRejected, ResourcesMissing
from pipeline.stages.promote import KEY_ENV, promote
from serving.config import AppSettings
from serving.http.routes import build_routes
from serving.keys import digest
from serving.model.watcher import ModelWatcher
from tests.support.stripes_model import publish


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of a server of stripes/production, which needs a key."""
    monkeypatch.setattr("serving.model.watcher.POLL_S", 0.05)
    publish(Storage(str(tmp_path)))
    settings = AppSettings(
        root=str(tmp_path), model="stripes/production", api_keys=(digest(b"secret"),)
    )
    watcher = ModelWatcher(settings)
    app = build_routes(watcher, settings, [watcher.run])
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def test_a_promotion_waits_until_a_server_answers_by_the_version(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, "secret")
    second = publish(Storage(str(tmp_path)), scale=2.0)
    settings = Promote(root=str(tmp_path), model=second.ref, server=server)
    assert promote(settings) == "stripes/production"


def test_a_promotion_that_a_server_refuses_says_why(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, "secret")
    second = publish(Storage(str(tmp_path)), scale=2.0)
    Storage(str(tmp_path)).write(f"models/{second.ref}/model.onnx", b"not a model")
    settings = Promote(root=str(tmp_path), model=second.ref, server=server)
    with pytest.raises(ModelRejected, match="refuses .*its manifest says"):
        promote(settings)


@pytest.mark.parametrize(
    ("key", "address", "message"),
    [
        ("", None, "answers 401: This server requires an API key"),
        ("secret", "http://127.0.0.1:9", "does not answer"),
    ],
)
def test_a_server_that_cannot_be_asked_is_told(
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    address: str | None,
    message: str,
) -> None:
    monkeypatch.setenv(KEY_ENV, key)
    model = publish(Storage(str(tmp_path)))
    settings = Promote(root=str(tmp_path), model=model.ref, server=address or server)
    with pytest.raises(ResourcesMissing, match=message):
        promote(settings)
