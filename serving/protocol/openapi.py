"""The OpenAPI document of the server, for the model that it serves: GET /openapi.json.

Of requests for predictions it describes those with one image, whose sizes a schema can state; the
protocol's documents describe batches and binary tensors, and the README forms of several pictures.
"""

from __future__ import annotations

from typing import Any

from pipeline.artifacts.manifests import ModelManifest
from pipeline.contract import INPUT, PIXEL_MAX, ImageSpec
from serving.protocol.types import Json
from serving.protocol.v2_metadata import SERVER

REFUSALS = {
    400: "The request is not one that the model can be shown.",
    401: "There is no API key, or one that is not valid.",
    404: "The server does not serve this model or version.",
    405: "The address does not take this method.",
    408: "The request was not whole in time.",
    413: "The body or the number of images is over its bound.",
    415: "The body is in a format or encoding that is not understood.",
    422: "The picture is damaged, blank, or over its bound.",
    503: "The queue is full, or the server is not ready: send the request again after Retry-After.",
}

BODY = (400, 408, 413, 415, 503)


def document(model: ModelManifest, *, keys: bool) -> Json:
    """The document, OpenAPI 3.1; `keys` says whether the server wants API keys."""
    image = model.image
    named: Json = {"model_name": _string(), "model_version": _string()}
    picture = {kind: {"schema": _binary()} for kind in ("image/png", "image/jpeg")}
    described = _prediction_schema(image)
    paths: Json = {
        "/v2": {"get": _operation("Server metadata", _any_object())},
        "/v2/health/live": {
            "get": _operation("Is the server there?", _any_object(), public_paths=True)
        },
        "/v2/health/ready": {"get": _operation("Is it ready?", _any_object(), public_paths=True)},
        "/v2/models/stats": {"get": _operation("Statistics", _any_object())},
        "/v2/repository/index": {"post": _operation("The models", {"type": "array"})},
        "/v1/models": {"get": _operation("The models, V1", _any_object())},
        "/v1/models/{name}": _model_path(
            {"get": _operation("Is it ready? V1", _any_object(), 404)}, model
        ),
        "/v1/models/{name}:predict": _model_path(
            {
                "post": _operation(
                    "Predictions, V1", _any_object(), *BODY, 404, body=_json(_v1(image))
                )
            },
            model,
        ),
        "/predict": {
            "post": _operation(
                "The class of a picture",
                _object(described | named) | {"additionalProperties": True},
                *BODY,
                422,
                body=picture,
            )
        },
    }
    of_model = {
        "": ("get", _operation("Metadata", _any_object(), 404)),
        "/ready": ("get", _operation("Is it ready?", _any_object(), 404)),
        "/config": ("get", _operation("Configuration", _any_object(), 404)),
        "/stats": ("get", _operation("Statistics", _any_object(), 404)),
        "/infer": (
            "post",
            _operation("Predictions", _any_object(), *BODY, 404, body=_json(_v2(image))),
        ),
    }
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        for end, (method, operation) in of_model.items():
            paths[path + end] = _model_path({method: operation}, model, "{version}" in path)
    return {
        "openapi": "3.1.0",
        "info": {"title": SERVER["name"], "version": SERVER["version"]},
        "paths": paths,
        "components": {
            "schemas": {"Error": _object({"error": _string()})},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if keys else [],
    }


def _operation(
    summary: str,
    answer: Json,
    *refusals: int,
    body: Json | None = None,
    public_paths: bool = False,
) -> Json:
    error = _json({"$ref": "#/components/schemas/Error"})
    responses: Json = {"200": {"description": "The answer.", "content": _json(answer)}}
    for status in sorted({*refusals, 401, 405}):
        responses[str(status)] = {"description": REFUSALS[status], "content": error}
    operation: Json = {"summary": summary, "responses": responses}
    if body:
        operation["requestBody"] = {"required": True, "content": body}
    if public_paths:
        operation["security"] = []
    return operation


def _model_path(methods: Json, model: ModelManifest, version: bool = False) -> Json:
    names = {"name": model.name} | ({"version": model.version} if version else {})
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "enum": [value]},
        }
        for name, value in names.items()
    ]
    return {"parameters": parameters, **methods}


def _v2(image: ImageSpec) -> Json:
    tensor = {
        "name": {"const": INPUT},
        "datatype": {"const": "UINT8"},
        "shape": {"const": [1, *image.shape]},
        "data": _pixels(image),
    }
    request = _object({"inputs": {"type": "array", "items": _object(tensor), **_length(1)}})
    request["properties"]["id"] = {"type": ["string", "null"]}
    return request


def _v1(image: ImageSpec) -> Json:
    instances = {"type": "array", "items": _pixels(image), "minItems": 1}
    # Clients of TensorFlow Serving send more, such as signature_name.
    return _object({"instances": instances}) | {"additionalProperties": True}


def _prediction_schema(image: ImageSpec) -> Json:
    probabilities = {"type": "object", "additionalProperties": {"type": "number"}}
    return {
        "prediction": {"type": "integer", "minimum": 0, "maximum": image.num_classes - 1},
        "class_name": {"enum": list(image.class_names)},
        "probabilities": probabilities,
        "inverted": {"type": "boolean"},
        "fitted": {"type": "boolean"},
    }


def _pixels(image: ImageSpec) -> Json:
    pixel = {"type": "integer", "minimum": 0, "maximum": PIXEL_MAX}
    return {"type": "array", "items": pixel, **_length(image.num_pixels)}


def _length(length: int) -> Json:
    return {"minItems": length, "maxItems": length}


def _object(properties: dict[str, Any]) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _any_object() -> Json:
    return {"type": "object"}


def _string() -> Json:
    return {"type": "string"}


def _binary() -> Json:
    return {"type": "string", "format": "binary"}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
