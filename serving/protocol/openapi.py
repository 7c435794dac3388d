"""The OpenAPI document of the server, for the model that it serves: GET /openapi.json.

It describes requests that predict one image, because a schema can state its size. Batches and
binary tensors are described by the protocol's own documents, and forms with several image files by
docs/serving.md.

To add a route: add it to the table in `serving/http/routes.py`, and its operation here.
"""

from __future__ import annotations

from typing import Any

from pipeline.artifacts.manifests import ModelManifest
from pipeline.contract import INPUT, PIXEL_MAX, PREDICTION, PROBABILITIES, ImageSpec
from serving.protocol.types import Json
from serving.protocol.v2_metadata import SERVER

ERROR_DESCRIPTIONS = {
    400: "The request breaks the protocol, or does not fit the model.",
    401: "The API key is missing or not valid.",
    404: "The model or version is not served here.",
    405: "The address does not take this method.",
    408: "The request was not complete in time.",
    413: "The body, or the number of images, exceeds its limit.",
    415: "The format or encoding of the body is not supported.",
    422: "An image is damaged, blank, too large, or of another size or colour than the model's, or "
    "the body takes too much time or memory to decode.",
    503: "The queue is full, or the server is not ready: send the request again after Retry-After.",
}

BODY_ERRORS = (400, 408, 413, 415, 503)
"""Statuses of every operation that has a body."""

PARAMETERS: Json = {
    "parameters": {
        "type": ["object", "null"],
        "additionalProperties": {"type": ["boolean", "number", "string"]},
    }
}
"""Parameters of a request, an input or an output."""

MODEL_PATHS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")


def document(model: ModelManifest, *, keys: bool) -> Json:
    """Return the document, OpenAPI 3.1; `keys` says whether the server requires API keys."""
    paths = _server_paths() | _v1_paths(model) | _predict_path(model.image)
    for path in MODEL_PATHS:
        for suffix, methods in _model_operations(model.image).items():
            paths[path + suffix] = _model_path(methods, model, version="{version}" in path)
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


def _server_paths() -> Json:
    live = _operation("Whether the server runs", _any_object(), public=True)
    ready = _operation("Whether the model passes its self-test", _any_object(), public=True)
    return {
        "/v2": {"get": _operation("Server metadata", _any_object())},
        "/v2/models": {"get": _operation("List of models", _any_object())},
        "/v2/health/live": {"get": live},
        "/v2/health/ready": {"get": ready},
        "/v2/models/stats": {"get": _operation("Statistics", _any_object())},
        "/v2/repository/index": {"post": _operation("List of models", {"type": "array"})},
    }


def _v1_paths(model: ModelManifest) -> Json:
    ready = _operation("Whether the model is ready, V1", _any_object(), 404)
    errors = (*BODY_ERRORS, 404, 422)
    body = _json(_v1_request(model.image))
    predict = _operation("Predictions, V1", _any_object(), *errors, body=body)
    return {
        "/v1/models": {"get": _operation("List of models, V1", _any_object())},
        "/v1/models/{name}": _model_path({"get": ready}, model),
        "/v1/models/{name}:predict": _model_path({"post": predict}, model),
    }


def _predict_path(image: ImageSpec) -> Json:
    model_names: Json = {"model_name": _string(), "model_version": _string()}
    # The answer may have more: `caveat`, and `pixels` if the query asks for them.
    answer = _object(_prediction_schema(image) | model_names) | {"additionalProperties": True}
    image_file = {media_type: {"schema": _binary()} for media_type in ("image/png", "image/jpeg")}
    predict = _operation("The class of an image file", answer, *BODY_ERRORS, 422, body=image_file)
    return {"/predict": {"post": predict}}


def _model_operations(image: ImageSpec) -> dict[str, Json]:
    """Return the operations of a model or version, by the end of the address."""
    infer = _operation(
        "Predictions", _any_object(), *BODY_ERRORS, 404, 422, body=_json(_v2_request(image))
    )
    return {
        "": {"get": _operation("Model metadata", _any_object(), 404)},
        "/ready": {"get": _operation("Whether the model is ready", _any_object(), 404)},
        "/config": {"get": _operation("Model configuration", _any_object(), 404)},
        "/stats": {"get": _operation("Statistics", _any_object(), 404)},
        "/infer": {"post": infer},
    }


def _operation(
    summary: str,
    answer: Json,
    *errors: int,
    body: Json | None = None,
    public: bool = False,
) -> Json:
    """Return an operation; `errors` are its statuses beside 401 and 405, which all can have."""
    error = _json({"$ref": "#/components/schemas/Error"})
    responses: Json = {"200": {"description": "The answer.", "content": _json(answer)}}
    for status in sorted({*errors, 401, 405}):
        responses[str(status)] = {"description": ERROR_DESCRIPTIONS[status], "content": error}
    operation: Json = {"summary": summary, "responses": responses}
    if body:
        operation["requestBody"] = {"required": True, "content": body}
    if public:
        operation["security"] = []
    return operation


def _model_path(methods: Json, model: ModelManifest, *, version: bool = False) -> Json:
    """Return a path whose name, and version, can only be those of the served model."""
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


def _v2_request(image: ImageSpec) -> Json:
    tensor = {
        "name": {"const": INPUT},
        "datatype": {"const": "UINT8"},
        "shape": {"const": [1, *image.shape]},
        "data": _pixels(image),
    }
    inputs = {"type": "array", "items": _open(tensor, PARAMETERS), **_length(1)}
    names = {"name": {"enum": [PROBABILITIES, PREDICTION]}}
    outputs = {"type": ["array", "null"], "items": _open(names, PARAMETERS)}
    text = {"type": ["string", "null"]}
    optional = {"id": text, "model_name": text, "model_version": text, "outputs": outputs}
    return _open({"inputs": inputs}, PARAMETERS | optional)


def _v1_request(image: ImageSpec) -> Json:
    instances = {"type": "array", "items": _pixels(image), "minItems": 1}
    # Clients of TensorFlow Serving send more fields, such as signature_name.
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


def _open(required: dict[str, Any], optional: dict[str, Any]) -> Json:
    """Return an object that may have other properties, which are ignored."""
    schema = _object(required) | {"additionalProperties": True}
    return schema | {"properties": required | optional}


def _any_object() -> Json:
    return {"type": "object"}


def _string() -> Json:
    return {"type": "string"}


def _binary() -> Json:
    return {"type": "string", "format": "binary"}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
