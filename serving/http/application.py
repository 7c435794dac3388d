"""The ASGI application: authenticate, find the handler of an address, send its response.

Every error is {"error": "..."} in application/json; its status and headers are attributes of the
error's class in `serving.errors`.

Routing is a lookup in a dict, and requests are plain objects, to save time: the same handler takes
103-118 us on Starlette and 83-89 us here, of about 250 us that a whole request takes.
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
from serving.http.bounds import BodyMemory, ClientWatch, RequestMemory
from serving.model.watcher import ModelWatcher

OVERLOADED_DELAY_S = 0.25
"""Delay of the answer to a request that the full queue refuses, in seconds."""

RESTART_S = 1.0
"""Time after which a background task that failed starts again."""

MODEL_PLACEHOLDER = "{model}"
"""Stands in the route table for NAME or for NAME/versions/VERSION."""

_MODEL_PATH = re.compile(r"(/v[12]/models/)([^/:]+)(?:/versions/([^/:]+))?(.*)")


@dataclass(slots=True)
class HttpRequest:
    """A request: its headers, by lower-case name, and the model and version in its address.

    `model` and `version` are empty if the address has none.
    """

    headers: Mapping[str, str]
    query: str
    receive: Receive
    memory: RequestMemory
    client: ClientWatch
    model: str
    version: str


@dataclass(frozen=True)
class HttpResponse:
    """The response to a request; `content-length` is added when it is sent."""

    body: bytes
    headers: Mapping[str, str]
    status: int = 200


Handler: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse]]

RouteTable: TypeAlias = Mapping[str, Mapping[str, Handler]]
"""Handlers by address and method. GET handlers also answer HEAD."""

BackgroundTask: TypeAlias = Callable[[], Coroutine[None, None, None]]


class Application:
    """Answers requests by the handlers of a route table; runs background tasks while it lives."""

    def __init__(
        self,
        table: RouteTable,
        watcher: ModelWatcher,
        *,
        digests: Sequence[str],
        max_bodies_bytes: int,
        public_paths: frozenset[str],
        background: Sequence[BackgroundTask],
    ) -> None:
        """Require an API key with one of the digests, except for `public_paths`.

        Without digests, no request needs a key.
        """
        self._table = table
        self._watcher = watcher
        self._digests = digests
        self._memory = BodyMemory(max_bodies_bytes)
        self._public_paths = public_paths
        self._background = background

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            headers = _read_headers(scope["headers"])
            response = await self._respond(scope, headers, receive)
            response_headers = {**response.headers, "content-length": str(len(response.body))}
            start = {
                "type": "http.response.start",
                "status": response.status,
                "headers": [
                    (name.encode(), value.encode()) for name, value in response_headers.items()
                ],
            }
            await send(start)
            await send({"type": "http.response.body", "body": response.body})

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        """Start the background tasks at ASGI's startup message, cancel them at its shutdown."""
        await receive()
        tasks = [asyncio.create_task(_kept_running(task)) for task in self._background]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for task in tasks:
            task.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _respond(
        self, scope: Scope, headers: Mapping[str, str], receive: Receive
    ) -> HttpResponse:
        memory, client = RequestMemory(self._memory), ClientWatch(receive)
        try:
            if self._digests and scope["path"] not in self._public_paths:
                self._authenticate(headers)
            handler, model, version = self._find_handler(scope["method"], scope["path"])
            query = scope["query_string"].decode("latin-1")
            request = HttpRequest(headers, query, receive, memory, client, model, version)
            return await handler(request)
        except RequestError as error:
            self._watcher.current.batcher.statistics.errors[type(error).__name__] += 1
            if isinstance(error, Overloaded):
                client.stop()
                # Delay refusals: clients that retry at once would starve the others.
                await asyncio.sleep(OVERLOADED_DELAY_S)
            return _error_response(error.status, str(error), error.headers)
        except ClientDisconnect:
            return _error_response(400, "The client disconnected before its request was complete.")
        except asyncio.CancelledError:
            if not client.left:
                raise
            # Nobody reads this.
            return _error_response(499, "The client disconnected before it was answered.")
        except Exception:
            request_id = safe_repr(headers.get("x-request-id", ""))
            logging.getLogger(__name__).exception("request %s failed", request_id)
            return _error_response(500, "The server failed on this request. Its log says why.")
        finally:
            client.stop()
            memory.release()

    def _authenticate(self, headers: Mapping[str, str]) -> None:
        if not keys.valid(keys.sent_key(headers), self._digests):
            raise Unauthorized("This server requires an API key. Send Authorization: Bearer KEY.")

    def _find_handler(self, method: str, path: str) -> tuple[Handler, str, str]:
        """Return the handler of an address, and the model and version in the address."""
        model = version = ""
        # A path is percent-decoded, so a client can send the placeholder itself: as a model's name.
        handlers = None if MODEL_PLACEHOLDER in path else self._table.get(path)
        if handlers is None:
            match = _MODEL_PATH.fullmatch(path)
            if match:
                prefix, model, version, suffix = match.groups(default="")
                handlers = self._table.get(f"{prefix}{MODEL_PLACEHOLDER}{suffix}")
        if handlers is None:
            raise AddressUnknown(
                "No route has this address. POST an image file to /predict, or see /v2 for more."
            )
        handler = handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            raise MethodUnknown(method, ", ".join(handlers))
        return handler, model, version


async def _kept_running(task: BackgroundTask) -> None:
    """Run a background task until it is cancelled; start it again if it fails."""
    while True:
        try:
            await task()
            return
        except Exception:
            logging.getLogger(__name__).exception("%s failed, and starts again", task.__qualname__)
            await asyncio.sleep(RESTART_S)


def _read_headers(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name; the values of one that is sent twice are a list (RFC 9110, 5.3)."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    values = dict(pairs)
    if len(values) < len(pairs):
        values = {
            name: ", ".join(value for other, value in pairs if other == name) for name in values
        }
    return values


def _error_response(
    status: int, message: str, headers: Mapping[str, str] | None = None
) -> HttpResponse:
    body = json.dumps({"error": message}).encode()
    return HttpResponse(body, {"content-type": "application/json", **(headers or {})}, status)
