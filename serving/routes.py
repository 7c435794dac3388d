"""The HTTP routes: they convert and delegate. Every error is {"error": "..."} in application/json.

Only here does anything know of HTTP, and `STATUS` is the one table from error to status.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.manifest import ModelManifest
from pipeline.predictor import Predictions
from serving import errors, protocol
from serving.errors import ModelUnknown, PayloadTooLarge, RequestError, UnsupportedMedia, short
from serving.images import decode_png
from serving.protocol import Images
from serving.settings import AppSettings

STATUS: dict[type[RequestError], int] = {
    errors.RequestInvalid: 400,
    errors.ModelUnknown: 404,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.ImageInvalid: 422,
    errors.Overloaded: 503,
}

HEADERS = {503: {"Retry-After": "1"}}

BINARY_HEADER = "inference-header-content-length"


def build_routes(
    model: ModelManifest,
    predict: Callable[[Images], Awaitable[Predictions]],
    settings: AppSettings,
) -> Starlette:
    """The ASGI application that answers for `model`, whose predictions `predict` makes."""
    routes = _Routes(model, predict, settings)
    name = "/v2/models/{name}"
    version = name + "/versions/{version}"
    app = Starlette(
        routes=[
            Route("/v2", routes.server),
            Route("/v2/", routes.server),
            Route("/v2/health/live", routes.live),
            Route("/v2/health/ready", routes.ready),
            *(Route(path, routes.model) for path in (name, version)),
            *(Route(f"{path}/ready", routes.model_ready) for path in (name, version)),
            *(Route(f"{path}/infer", routes.infer, methods=["POST"]) for path in (name, version)),
            Route("/predict", routes.predict, methods=["POST"]),
        ],
        exception_handlers={
            RequestError: _refused,
            HTTPException: _no_route,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )
    # A redirect counts as an error with clients of the protocol.
    app.router.redirect_slashes = False
    return app


class _Routes:
    def __init__(
        self,
        model: ModelManifest,
        predict: Callable[[Images], Awaitable[Predictions]],
        settings: AppSettings,
    ) -> None:
        self._model = model
        self._predict = predict
        self._settings = settings

    async def server(self, request: Request) -> Response:
        return JSONResponse(protocol.SERVER)

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        return JSONResponse({"ready": True})

    async def model(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse(protocol.model_metadata(self._model))

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse({"name": self._model.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        self._check_model(request)
        if BINARY_HEADER in request.headers:
            raise UnsupportedMedia("Binary tensors are not understood here. Send them as JSON.")
        body = await self._body(request)
        asked = protocol.parse_request(body, self._model, max_rows=self._settings.max_request_rows)
        predictions = await self._predict(asked.images)
        content = protocol.build_response(self._model, asked, predictions)
        return Response(content, media_type="application/json")

    async def predict(self, request: Request) -> Response:
        image = self._model.image
        pixels = decode_png(await self._body(request), image)
        predictions = await self._predict(pixels[None])
        prediction = int(predictions.prediction[0])
        probabilities = predictions.probabilities[0].tolist()
        answer = {
            "prediction": prediction,
            "class_name": image.class_names[prediction],
            "probabilities": dict(zip(image.class_names, probabilities, strict=True)),
            "model_name": self._model.name,
            "model_version": self._model.version,
        }
        if self._model.caveat:
            answer["caveat"] = self._model.caveat
        return JSONResponse(answer)

    def _check_model(self, request: Request) -> None:
        model = self._model
        name = request.path_params["name"]
        version = request.path_params.get("version", model.version)
        if (name, version) != (model.name, model.version):
            what = short(name) if name != model.name else f"version {short(version)} of {name}"
            raise ModelUnknown(
                f"Model {what} is not served here. Ask for {model.name}, version {model.version}."
            )

    async def _body(self, request: Request) -> bytes:
        """The body, which is never read further than its bound."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise UnsupportedMedia(
                f"Content-Encoding is {short(encoding)}. Send the body as it is."
            )
        bound = self._settings.max_body_bytes
        too_large = PayloadTooLarge(
            f"The body is larger than {self._settings.max_body_mib} MiB. "
            "Send the images in several requests."
        )
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > bound:
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > bound:
                raise too_large
        return bytes(body)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers or HEADERS.get(status))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(STATUS[type(error)], str(error))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"This address does not take {short(request.method)}. Send {allowed}."
        return _error(405, message, {"Allow": allowed})
    return _error(
        error.status_code,
        "There is nothing at this address. POST a PNG to /predict, or see /v2 for the protocol.",
    )


async def _gone(request: Request, error: Exception) -> Response:
    return _error(400, "The client left before its request was whole.")


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, "The server failed on this request. Its log says why.")
