"""The HTTP routes: they convert and delegate. Every error is {"error": "..."} in application/json.

Only here does anything know of HTTP, and `STATUS` is the one table from error to status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, TypeAlias

import numpy as np
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.contract import Predictions
from pipeline.manifest import ModelManifest
from serving import errors, images, keys, openapi, protocol, v1
from serving.bodies import json_length, read_body, read_files, respond, respond_json
from serving.errors import RequestError, Unauthorized, short
from serving.following import Following, Served
from serving.protocol import JSON_LENGTH, Json
from serving.replies import build_reply
from serving.requests import parse_raw, parse_request
from serving.settings import AppSettings

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

STATUS: dict[type[RequestError], int] = {
    errors.RequestInvalid: 400,
    errors.Unauthorized: 401,
    errors.ModelUnknown: 404,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.ImageInvalid: 422,
    errors.Overloaded: 503,
}

HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


PAGE = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
OPEN = {"/v2/health/live", "/v2/health/ready", *PAGE}
TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript", "css": "text/css"}


def build_routes(
    following: Following,
    settings: AppSettings,
    background: Sequence[Callable[[], Coroutine[None, None, None]]] = (),
) -> ASGIApp:
    """The ASGI application that answers for what is served; `background` runs while it does."""
    routes = _Routes(following, settings)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work()) for work in background]
        yield
        for task in tasks:
            task.cancel()

    name = "/v2/models/{name}"
    paths = (name, name + "/versions/{version}")
    # Tried in this order.
    addresses: list[tuple[str, str, Handler]] = [
        *(("POST", f"{path}/infer", routes.infer) for path in paths),
        ("GET", "/v2", routes.server),
        ("GET", "/v2/", routes.server),
        ("GET", "/v2/health/live", routes.live),
        ("GET", "/v2/health/ready", routes.ready),
        ("GET", "/v2/models/stats", routes.stats),
        ("POST", "/v2/repository/index", routes.index),
        *(("GET", path, routes.model) for path in paths),
        *(("GET", f"{path}/ready", routes.model_ready) for path in paths),
        *(("GET", f"{path}/config", routes.config) for path in paths),
        *(("GET", f"{path}/stats", routes.stats) for path in paths),
        ("GET", "/v1/models", routes.v1_models),
        ("POST", "/v1/models/{name}:predict", routes.v1_predict),
        ("GET", "/v1/models/{name}", routes.model_ready),
        ("POST", "/predict", routes.predict),
        ("GET", "/openapi.json", routes.openapi),
        *(("GET", path, _page(name)) for path, name in PAGE.items()),
    ]
    router = Router(
        [Route(path, _Endpoint(handler), methods=[method]) for method, path, handler in addresses],
        # A redirect counts as an error with clients of the protocol.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    return _Application(router, following, settings.api_keys)


class _Application:
    """Lets in who has a key, where there are keys, and gives every error its one form.

    Starlette's own application and its wrappers of handlers take as long as the routes themselves.
    """

    def __init__(self, router: Router, following: Following, digests: tuple[str, ...]) -> None:
        self._router, self._following, self._digests = router, following, digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        # Where it is there, the router raises what it would else answer as plain text.
        scope["app"] = self
        try:
            if self._digests and scope["path"] not in OPEN:
                self._admit(scope)
            await self._router(scope, receive, send)
            return
        except RequestError as error:
            self._following.served.batcher.statistics.errors[type(error).__name__] += 1
            response = _error(STATUS[type(error)], str(error))
        except HTTPException as error:
            response = _no_route(scope["method"], error)
        except ClientDisconnect:
            response = _error(400, "The client left before its request was whole.")
        except Exception:
            request_id = Headers(scope=scope).get("x-request-id", "")
            logging.getLogger(__name__).exception("request %s failed", short(request_id))
            response = _error(500, "The server failed on this request. Its log says why.")
        await response(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        if not keys.valid(keys.sent_key(scope["headers"]), self._digests):
            raise Unauthorized("This server wants an API key. Send Authorization: Bearer KEY.")


class _Endpoint:
    """A handler as an ASGI application."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handler(Request(scope, receive))
        await response(scope, receive, send)


class _Routes:
    def __init__(self, following: Following, settings: AppSettings) -> None:
        self._following = following
        self._settings = settings

    async def server(self, request: Request) -> Response:
        return respond_json(request, protocol.SERVER)

    async def live(self, request: Request) -> Response:
        return respond_json(request, {"live": True})

    async def ready(self, request: Request) -> Response:
        return respond_json(request, {"ready": True})

    async def openapi(self, request: Request) -> Response:
        keys = bool(self._settings.api_keys)
        return respond_json(request, openapi.document(self._following.served.model, keys=keys))

    async def index(self, request: Request) -> Response:
        return respond_json(request, protocol.repository_index(self._following.served.model))

    async def model(self, request: Request) -> Response:
        return respond_json(request, protocol.model_metadata(self._served(request).model))

    async def model_ready(self, request: Request) -> Response:
        served, refused = self._served(request), self._following.refused
        answer: Json = {"name": served.model.name, "ready": True, "version": served.model.version}
        if refused:
            answer["refused"] = {"version": refused.version, "reason": refused.reason}
        return respond_json(request, answer)

    async def config(self, request: Request) -> Response:
        model, max_rows = self._served(request).model, self._settings.max_request_rows
        return respond_json(request, protocol.model_config(model, max_rows=max_rows))

    async def stats(self, request: Request) -> Response:
        served = self._served(request)
        return respond_json(request, served.batcher.statistics.json(served.model))

    async def infer(self, request: Request) -> Response:
        served = self._served(request)
        body, json_bytes = await read_body(request, self._settings), json_length(request)
        max_rows = self._settings.max_request_rows
        if json_bytes == 0:
            binary = "application/json" not in request.headers.get("accept", "")
            asked = parse_raw(body, served.model, binary=binary, max_rows=max_rows)
        else:
            asked = parse_request(body, json_bytes, served.model, max_rows=max_rows)
        reply = build_reply(served.model, asked, await served.batcher.predict(asked.images))
        if reply.json_bytes is None:
            return respond(request, reply.body, {"content-type": "application/json"})
        headers = {
            "content-type": "application/octet-stream",
            JSON_LENGTH: str(reply.json_bytes),
        }
        return respond(request, reply.body, headers)

    async def v1_models(self, request: Request) -> Response:
        return respond_json(request, {"models": [self._following.served.model.name]})

    async def v1_predict(self, request: Request) -> Response:
        served = self._served(request)
        body, max_rows = await read_body(request, self._settings), self._settings.max_request_rows
        asked = v1.parse_instances(body, served.model, max_rows=max_rows)
        return respond_json(request, v1.predictions_json(await served.batcher.predict(asked)))

    async def predict(self, request: Request) -> Response:
        """One picture as the body, or several as the files of a form."""
        served = self._served(request)
        model = served.model
        named: Json = {"model_name": model.name, "model_version": model.version}
        if model.caveat:
            named["caveat"] = model.caveat
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            shown = await _read(await read_body(request, self._settings), model)
            predictions = await served.batcher.predict(shown.pixels[None])
            answer = _describe(model, shown, predictions, 0)
            if request.query_params.get("pixels") == "true":
                answer["pixels"] = shown.pixels.tolist()
            return respond_json(request, answer | named)
        pictures = [await _read(data, model) for data in await read_files(request, self._settings)]
        predictions = await served.batcher.predict(np.stack([shown.pixels for shown in pictures]))
        answers = [_describe(model, shown, predictions, k) for k, shown in enumerate(pictures)]
        return respond_json(request, {"predictions": answers} | named)

    def _served(self, request: Request) -> Served:
        return self._following.find(**request.path_params)


async def _read(data: bytes, model: ModelManifest) -> images.Shown:
    return await asyncio.to_thread(images.read, data, model.image)


def _describe(
    model: ModelManifest, shown: images.Shown, predictions: Predictions, row: int
) -> Json:
    class_names = model.image.class_names
    prediction = int(predictions.prediction[row])
    probabilities = predictions.probabilities[row].tolist()
    return {
        "prediction": prediction,
        "class_name": class_names[prediction],
        "probabilities": dict(zip(class_names, probabilities, strict=True)),
        "inverted": shown.inverted,
        "fitted": shown.fitted,
    }


def _page(name: str) -> Handler:
    """The route of a file of the drawing page, which loads nothing from elsewhere."""
    content = (files("serving") / "web" / name).read_bytes()
    headers = {
        "content-type": TYPES[name.rpartition(".")[2]],
        "content-security-policy": "default-src 'self'",
        "cache-control": "no-cache",
    }

    async def answer(request: Request) -> Response:
        return respond(request, content, headers)

    return answer


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers or HEADERS.get(status))


def _no_route(method: str, error: HTTPException) -> Response:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"This address does not take {short(method)}. Send {allowed}."
        return _error(405, message, {"Allow": allowed})
    return _error(
        error.status_code,
        "There is nothing at this address. POST a picture to /predict, or see /v2 for more.",
    )
