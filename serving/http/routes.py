"""The HTTP routes: they convert and delegate, and raise what `asgi` answers as errors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.resources import files
from urllib.parse import parse_qs

import numpy as np
from starlette.types import ASGIApp

from pipeline.artifacts.manifests import ModelManifest
from pipeline.contract import Predictions
from serving.config import AppSettings
from serving.http.application import (
    Application,
    BackgroundTask,
    Handler,
    HttpRequest,
    HttpResponse,
    RouteTable,
)
from serving.http.bodies import json_length, read_body, read_files, respond, respond_json
from serving.model import image_input
from serving.model.watcher import LoadedModel, ModelWatcher
from serving.protocol import openapi, v1, v2_metadata
from serving.protocol.types import JSON_LENGTH, Json
from serving.protocol.v2_request import parse_raw, parse_request
from serving.protocol.v2_response import build_reply

PAGE = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}

PUBLIC_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", *PAGE})

TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript", "css": "text/css"}


def build_routes(
    watcher: ModelWatcher, settings: AppSettings, background: Sequence[BackgroundTask] = ()
) -> ASGIApp:
    """The ASGI application that answers for what is served; `background` runs while it does."""
    routes = _Routes(watcher, settings)
    table: RouteTable = {
        "/predict": {"POST": routes.predict},
        "/openapi.json": {"GET": routes.openapi},
        "/v2": {"GET": routes.server},
        "/v2/": {"GET": routes.server},
        "/v2/health/live": {"GET": routes.live},
        "/v2/health/ready": {"GET": routes.ready},
        "/v2/models/stats": {"GET": routes.stats},
        "/v2/models/MODEL": {"GET": routes.model},
        "/v2/models/MODEL/ready": {"GET": routes.model_ready},
        "/v2/models/MODEL/config": {"GET": routes.config},
        "/v2/models/MODEL/stats": {"GET": routes.stats},
        "/v2/models/MODEL/infer": {"POST": routes.infer},
        "/v2/repository/index": {"POST": routes.index},
        "/v1/models": {"GET": routes.v1_models},
        "/v1/models/MODEL": {"GET": routes.model_ready},
        "/v1/models/MODEL:predict": {"POST": routes.v1_predict},
        **{address: {"GET": _page(name)} for address, name in PAGE.items()},
    }
    return Application(
        table,
        watcher,
        digests=settings.api_keys,
        public_paths=PUBLIC_PATHS,
        background=background,
    )


class _Routes:
    def __init__(self, watcher: ModelWatcher, settings: AppSettings) -> None:
        self._watcher = watcher
        self._settings = settings

    async def server(self, call: HttpRequest) -> HttpResponse:
        return respond_json(call, v2_metadata.SERVER)

    async def live(self, call: HttpRequest) -> HttpResponse:
        return respond_json(call, {"live": True})

    async def ready(self, call: HttpRequest) -> HttpResponse:
        self._watcher.require_ready()
        return respond_json(call, {"ready": True})

    async def openapi(self, call: HttpRequest) -> HttpResponse:
        keys = bool(self._settings.api_keys)
        return respond_json(call, openapi.document(self._watcher.current.model, keys=keys))

    async def index(self, call: HttpRequest) -> HttpResponse:
        return respond_json(call, v2_metadata.repository_index(self._watcher.current.model))

    async def model(self, call: HttpRequest) -> HttpResponse:
        return respond_json(call, v2_metadata.model_metadata(self._served(call).model))

    async def model_ready(self, call: HttpRequest) -> HttpResponse:
        served, refused = self._served(call), self._watcher.rejected
        self._watcher.require_ready()
        answer: Json = {"name": served.model.name, "ready": True, "version": served.model.version}
        if refused:
            answer["refused"] = {"version": refused.version, "reason": refused.reason}
        return respond_json(call, answer)

    async def config(self, call: HttpRequest) -> HttpResponse:
        model, max_rows = self._served(call).model, self._settings.max_request_rows
        return respond_json(call, v2_metadata.model_config(model, max_rows=max_rows))

    async def stats(self, call: HttpRequest) -> HttpResponse:
        served = self._served(call)
        return respond_json(call, served.batcher.statistics.json(served.model))

    async def infer(self, call: HttpRequest) -> HttpResponse:
        served, json_bytes = self._served(call), json_length(call)
        if json_bytes is not None:
            # Of binary tensors the length tells the rows, so none is read in vain.
            length = int(call.headers.get("content-length", "0")) - json_bytes
            served.batcher.require_room(length // served.model.image.num_pixels)
        body = await read_body(call, self._settings)
        max_rows = self._settings.max_request_rows
        if json_bytes == 0:
            binary = "application/json" not in call.headers.get("accept", "")
            asked = parse_raw(body, served.model, binary=binary, max_rows=max_rows)
        else:
            asked = parse_request(body, json_bytes, served.model, max_rows=max_rows)
        reply = build_reply(served.model, asked, await served.batcher.predict(asked.images))
        if reply.json_bytes is None:
            return respond(call, reply.body, {"content-type": "application/json"})
        headers = {
            "content-type": "application/octet-stream",
            JSON_LENGTH: str(reply.json_bytes),
        }
        return respond(call, reply.body, headers)

    async def v1_models(self, call: HttpRequest) -> HttpResponse:
        return respond_json(call, {"models": [self._watcher.current.model.name]})

    async def v1_predict(self, call: HttpRequest) -> HttpResponse:
        served = self._served(call)
        body, max_rows = await read_body(call, self._settings), self._settings.max_request_rows
        asked = v1.parse_instances(body, served.model, max_rows=max_rows)
        return respond_json(call, v1.predictions_json(await served.batcher.predict(asked)))

    async def predict(self, call: HttpRequest) -> HttpResponse:
        """One picture as the body, or several as the files of a form."""
        served = self._served(call)
        model = served.model
        named: Json = {"model_name": model.name, "model_version": model.version}
        if model.caveat:
            named["caveat"] = model.caveat
        if not call.headers.get("content-type", "").startswith("multipart/form-data"):
            shown = await _read(await read_body(call, self._settings), model)
            predictions = await served.batcher.predict(shown.pixels[None])
            answer = _describe(model, shown, predictions, 0)
            if parse_qs(call.query).get("pixels") == ["true"]:
                answer["pixels"] = shown.pixels.tolist()
            return respond_json(call, answer | named)
        pictures = [await _read(data, model) for data in await read_files(call, self._settings)]
        predictions = await served.batcher.predict(np.stack([shown.pixels for shown in pictures]))
        answers = [_describe(model, shown, predictions, k) for k, shown in enumerate(pictures)]
        return respond_json(call, {"predictions": answers} | named)

    def _served(self, call: HttpRequest) -> LoadedModel:
        return self._watcher.find(call.model, call.version)


async def _read(data: bytes, model: ModelManifest) -> image_input.ModelInput:
    return await asyncio.to_thread(image_input.read_image, data, model.image)


def _describe(
    model: ModelManifest, shown: image_input.ModelInput, predictions: Predictions, row: int
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

    async def answer(call: HttpRequest) -> HttpResponse:
        return respond(call, content, headers)

    return answer
