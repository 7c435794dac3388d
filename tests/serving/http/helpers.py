"""A client of the application without a server, and requests for it."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from typing import Any

import httpx
from PIL import Image
from starlette.types import ASGIApp

from pipeline.arrays import UInt8Array
from pipeline.artifacts.storage import Storage
from serving.config import AppSettings
from serving.model.watcher import ModelWatcher
from tests.support.stripes_model import publish


def publish_and_watch(root: str, **model: Any) -> ModelWatcher:
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
    """Calls the application itself, without a server."""

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


def png(image: UInt8Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def infer_body(images: UInt8Array, **fields: Any) -> dict[str, Any]:
    data = {"datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    return {"inputs": [{"name": "image", **data}], **fields}


def error_message(response: Any, status: int) -> str:
    """Return the message of an error, after checking that it has the one form of errors."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    return str(response.json()["error"])
