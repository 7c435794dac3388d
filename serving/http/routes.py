"""The HTTP routes: a table of address, method and handler, and the handlers.

A handler reads the request, calls the protocol and the batcher, and returns a response; it raises
the errors of `serving.errors`, which the application answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from typing import TypeVar
from urllib.parse import parse_qs

import numpy as np
from starlette.types import ASGIApp

from pipeline.artifacts.manifests import ModelManifest
from pipeline.contract import Predictions
from pipeline.images.prepare import PreparedImage
from serving.config import AppSettings
from serving.http.application import (
    Application,
    BackgroundTask,
    Handler,
    HttpRequest,
    HttpResponse,
    RouteTable,
)
from serving.http.bodies import json_length, read_body, respond, respond_json
from serving.http.decoder import Decoder
from serving.http.forms import read_form
from serving.model.watcher import LoadedModel, ModelWatcher
from serving.protocol import image_input, openapi, v1, v2_metadata
from serving.protocol.types import JSON_LENGTH, Json
from serving.protocol.v2_request import parse_raw, parse_request
from serving.protocol.v2_response import build_reply

R = TypeVar("R")

QUICK_JSON_BYTES = 1 << 18
"""Size of JSON that is parsed in the event loop. The worst of it takes 30 ms."""

PAGE_FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
"""Files of the drawing page in `serving/web`, by address."""

MEDIA_TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript", "css": "text/css"}

PUBLIC_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", *PAGE_FILES})
"""Addresses that need no API key."""


def route_table(handlers: Handlers) -> RouteTable:
    """Return all routes.

    To add a route: write a method of Handlers, and add a line here. {model} stands for a model's
    name, or for NAME/versions/VERSION. Describe the route in `serving/protocol/openapi.py`.
    """
    return {
        "/predict": {"POST": handlers.predict},
        "/openapi.json": {"GET": handlers.openapi},
        "/v2": {"GET": handlers.server},
        "/v2/": {"GET": handlers.server},
        "/v2/health/live": {"GET": handlers.live},
        "/v2/health/ready": {"GET": handlers.ready},
        "/v2/models": {"GET": handlers.models},
        "/v2/models/stats": {"GET": handlers.stats},
        "/v2/models/{model}": {"GET": handlers.model},
        "/v2/models/{model}/ready": {"GET": handlers.model_ready},
        "/v2/models/{model}/config": {"GET": handlers.config},
        "/v2/models/{model}/stats": {"GET": handlers.stats},
        "/v2/models/{model}/infer": {"POST": handlers.infer},
        "/v2/repository/index": {"POST": handlers.index},
        "/v1/models": {"GET": handlers.models},
        "/v1/models/{model}": {"GET": handlers.model_ready},
        "/v1/models/{model}:predict": {"POST": handlers.v1_predict},
        **{address: {"GET": _page_handler(name)} for address, name in PAGE_FILES.items()},
    }


def build_routes(
    watcher: ModelWatcher, settings: AppSettings, background: Sequence[BackgroundTask] = ()
) -> ASGIApp:
    """Return the ASGI application that serves the watcher's model and runs `background`."""
    decoder = Decoder()
    return Application(
        route_table(Handlers(watcher, decoder, settings)),
        watcher,
        digests=settings.api_keys,
        max_bodies_bytes=settings.max_bodies_mib << 20,
        public_paths=PUBLIC_PATHS,
        background=(decoder.start, *background),
    )


class Handlers:
    """The handlers of the route table, over the model that the watcher holds."""

    def __init__(self, watcher: ModelWatcher, decoder: Decoder, settings: AppSettings) -> None:
        self._watcher = watcher
        self._decoder = decoder
        self._settings = settings

    async def server(self, request: HttpRequest) -> HttpResponse:
        """Return the server's name, version and extensions."""
        return respond_json(request, v2_metadata.SERVER)

    async def live(self, request: HttpRequest) -> HttpResponse:
        """Return whether the server runs."""
        return respond_json(request, {"live": True})

    async def ready(self, request: HttpRequest) -> HttpResponse:
        """Return whether the model passes its self-test."""
        self._watcher.require_ready()
        return respond_json(request, {"ready": True})

    async def openapi(self, request: HttpRequest) -> HttpResponse:
        """Return the OpenAPI document."""
        keys = bool(self._settings.api_keys)
        return respond_json(request, openapi.document(self._watcher.current.model, keys=keys))

    async def index(self, request: HttpRequest) -> HttpResponse:
        """Return the list of models: the versions that are loaded."""
        return respond_json(request, v2_metadata.repository_index(self._models()))

    async def model(self, request: HttpRequest) -> HttpResponse:
        """Return the model's metadata: its versions and tensors."""
        model = self._find_model(request).model
        return respond_json(request, v2_metadata.model_metadata(model, self._models()))

    async def model_ready(self, request: HttpRequest) -> HttpResponse:
        """Return whether the model is ready, and a rejected version with the reason."""
        model = self._find_model(request).model
        rejected = self._watcher.rejected
        self._watcher.require_ready()
        answer: Json = {"name": model.name, "ready": True, "version": model.version}
        if rejected:
            answer["refused"] = {"version": rejected.version, "reason": rejected.reason}
        return respond_json(request, answer)

    async def config(self, request: HttpRequest) -> HttpResponse:
        """Return the model's configuration in Triton's format."""
        model = self._find_model(request).model
        max_rows = self._settings.max_request_rows
        return respond_json(request, v2_metadata.model_config(model, max_rows=max_rows))

    async def stats(self, request: HttpRequest) -> HttpResponse:
        """Return counts and durations of requests and of calls of the model."""
        loaded = self._find_model(request)
        return respond_json(request, loaded.batcher.statistics.json(loaded.model))

    async def infer(self, request: HttpRequest) -> HttpResponse:
        """Return predictions, V2: JSON, binary tensors or raw pixels."""
        loaded = self._find_model(request)
        json_bytes = json_length(request)
        if json_bytes is not None:
            # The length of a binary body gives its row count, so refuse it before reading.
            binary_bytes = int(request.headers.get("content-length", "0")) - json_bytes
            loaded.batcher.require_room(binary_bytes // loaded.model.image.num_pixels)
        body = await read_body(request, self._settings)
        max_rows = self._settings.max_request_rows
        if json_bytes == 0:
            # Raw pixels cannot say how they want the reply, so Accept does.
            binary = "application/json" not in request.headers.get("accept", "")
            infer_request = parse_raw(body, loaded.model, binary=binary, max_rows=max_rows)
        else:
            size = len(body) if json_bytes is None else json_bytes
            parse = partial(parse_request, body, json_bytes, loaded.model, max_rows=max_rows)
            infer_request = await self._decode(parse, quick=size <= QUICK_JSON_BYTES)
        predictions = await loaded.batcher.predict(infer_request.images)
        reply = build_reply(loaded.model, infer_request, predictions)
        if reply.json_bytes is None:
            return respond(request, reply.body, {"content-type": "application/json"})
        headers = {
            "content-type": "application/octet-stream",
            JSON_LENGTH: str(reply.json_bytes),
        }
        return respond(request, reply.body, headers)

    async def models(self, request: HttpRequest) -> HttpResponse:
        """Return the names of the models."""
        return respond_json(request, {"models": [self._watcher.current.model.name]})

    async def v1_predict(self, request: HttpRequest) -> HttpResponse:
        """Return predictions, V1."""
        loaded = self._find_model(request)
        body = await read_body(request, self._settings)
        limits = {
            "max_rows": self._settings.max_request_rows,
            "max_pixels": self._settings.max_request_pixels,
        }
        parse = partial(v1.parse_instances, body, loaded.model, **limits)
        # A small file in base64 may have millions of pixels. An escape may hide it.
        quick = len(body) <= QUICK_JSON_BYTES and b"b64" not in body and b"\\" not in body
        images = await self._decode(parse, quick=quick)
        predictions = await loaded.batcher.predict(images)
        return respond_json(request, v1.predictions_json(predictions))

    async def predict(self, request: HttpRequest) -> HttpResponse:
        """Predict one image, which is the body, or several, which are the files of a form."""
        loaded = self._find_model(request)
        model = loaded.model
        model_fields: Json = {"model_name": model.name, "model_version": model.version}
        if model.caveat:
            model_fields["caveat"] = model.caveat
        body = await read_body(request, self._settings)
        max_pixels = self._settings.max_request_pixels
        content_type = request.headers.get("content-type", "")
        if content_type.startswith("multipart/form-data"):
            limits = {"max_files": self._settings.max_request_rows, "max_pixels": max_pixels}
            form = partial(read_form, content_type, body, model.image, **limits)
            model_inputs = await self._decode(form, quick=False)
            images = np.stack([model_input.pixels for model_input in model_inputs])
            predictions = await loaded.batcher.predict(images)
            answers = [
                _describe(model, model_input, predictions, row)
                for row, model_input in enumerate(model_inputs)
            ]
            return respond_json(request, {"predictions": answers} | model_fields)
        read = partial(image_input.read_images, [body], model.image, max_pixels)
        (model_input,) = await self._decode(read, quick=image_input.is_quick(body))
        predictions = await loaded.batcher.predict(model_input.pixels[None])
        answer = _describe(model, model_input, predictions, 0)
        if parse_qs(request.query).get("pixels") == ["true"]:
            answer["pixels"] = model_input.pixels.tolist()
        return respond_json(request, answer | model_fields)

    async def _decode(self, function: partial[R], *, quick: bool) -> R:
        """Return the result of a function: called here if it is quick, otherwise by the decoder."""
        return function() if quick else await self._decoder.run(function)

    def _models(self) -> list[ModelManifest]:
        return [loaded.model for loaded in self._watcher.loaded]

    def _find_model(self, request: HttpRequest) -> LoadedModel:
        return self._watcher.find(request.model, request.version)


def _describe(
    model: ModelManifest, model_input: PreparedImage, predictions: Predictions, row: int
) -> Json:
    """Return the answer for one image; `row` is its row in the predictions."""
    class_names = model.image.class_names
    prediction = int(predictions.prediction[row])
    probabilities = predictions.probabilities[row].tolist()
    return {
        "prediction": prediction,
        "class_name": class_names[prediction],
        "probabilities": dict(zip(class_names, probabilities, strict=True)),
        "inverted": model_input.inverted,
        "fitted": model_input.fitted,
    }


def _page_handler(name: str) -> Handler:
    """Return the handler of a file of the drawing page, which may load nothing from elsewhere."""
    content = (files("serving") / "web" / name).read_bytes()
    headers = {
        "content-type": MEDIA_TYPES[name.rpartition(".")[2]],
        "content-security-policy": "default-src 'self'",
        "cache-control": "no-cache",
    }

    async def respond_with_file(request: HttpRequest) -> HttpResponse:
        """Return a file of the drawing page."""
        return respond(request, content, headers)

    return respond_with_file
