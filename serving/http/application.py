"""The ASGI application: finds the route of a call, lets in who has a key, sends what it answers.

Every error is {"error": "..."} in application/json, and `STATUS` is the one table from error to
status. Starlette's router, requests and responses would take as long as the rest of a prediction.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serving import keys
from serving.errors import (
    AddressUnknown,
    MethodUnknown,
    Overloaded,
    RequestError,
    Unauthorized,
    safe_repr,
)
from serving.model.watcher import ModelWatcher

REFUSAL_S = 0.25
"""How long it takes to refuse for want of room."""

_MODEL = re.compile(r"(/v[12]/models/)([^/:]+)(?:/versions/([^/:]+))?(.*)")


@dataclass(frozen=True)
class HttpRequest:
    """A request: its headers, of lower-case names, and the model and version of its address."""

    headers: Mapping[str, str]
    query: str
    receive: Receive
    model: str
    version: str


@dataclass(frozen=True)
class HttpResponse:
    """What is sent in answer to a call."""

    body: bytes
    headers: Mapping[str, str]
    status: int = 200


Handler: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse]]

RouteTable: TypeAlias = Mapping[str, Mapping[str, Handler]]
"""Handlers by address and method. MODEL in an address stands for a name, with a version or not."""

BackgroundTask: TypeAlias = Callable[[], Coroutine[None, None, None]]


class Application:
    """Answers by the table's handlers; does the work in the background while it lives."""

    def __init__(
        self,
        table: RouteTable,
        watcher: ModelWatcher,
        *,
        digests: Sequence[str],
        public_paths: frozenset[str],
        background: Sequence[BackgroundTask],
    ) -> None:
        """Where there are digests, calls need a key but for the addresses that are open to all."""
        self._table, self._watcher = table, watcher
        self._digests, self._open_to_all = digests, public_paths
        self._background = background

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
            response = await self._respond(scope, headers, receive)
            sent = {**response.headers, "content-length": str(len(response.body))}
            start = {
                "type": "http.response.start",
                "status": response.status,
                "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            }
            await send(start)
            await send({"type": "http.response.body", "body": response.body})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        tasks = [asyncio.create_task(work()) for work in self._background]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in tasks:
            task.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _respond(
        self, scope: Scope, headers: Mapping[str, str], receive: Receive
    ) -> HttpResponse:
        try:
            if self._digests and scope["path"] not in self._open_to_all:
                self._authenticate(headers)
            handler, model, version = self._find(scope["method"], scope["path"])
            query = scope["query_string"].decode("latin-1")
            return await handler(HttpRequest(headers, query, receive, model, version))
        except RequestError as error:
            self._watcher.current.batcher.statistics.errors[type(error).__name__] += 1
            if isinstance(error, Overloaded):
                # Who is refused asks again at once, and that would take the time of the others.
                await asyncio.sleep(REFUSAL_S)
            return _error(error.status, str(error), error.headers)
        except ClientDisconnect:
            return _error(400, "The client left before its request was whole.")
        except Exception:
            request_id = safe_repr(headers.get("x-request-id", ""))
            logging.getLogger(__name__).exception("request %s failed", request_id)
            return _error(500, "The server failed on this request. Its log says why.")

    def _authenticate(self, headers: Mapping[str, str]) -> None:
        if not keys.valid(keys.sent_key(headers), self._digests):
            raise Unauthorized("This server wants an API key. Send Authorization: Bearer KEY.")

    def _find(self, method: str, path: str) -> tuple[Handler, str, str]:
        """The handler of an address, and the model and version that the address names."""
        model = version = ""
        handlers = self._table.get(path)
        if handlers is None and (found := _MODEL.fullmatch(path)):
            before, model, version, after = found.groups(default="")
            handlers = self._table.get(f"{before}MODEL{after}")
        if handlers is None:
            raise AddressUnknown(
                "There is nothing at this address. POST a picture to /predict, or see /v2 for more."
            )
        handler = handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            raise MethodUnknown(method, ", ".join(handlers))
        return handler, model, version


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> HttpResponse:
    body = json.dumps({"error": message}).encode()
    return HttpResponse(body, {"content-type": "application/json", **(headers or {})}, status)
