"""The main peer: uvicorn, Starlette and onnxruntime alone, with the project's codec, one thread.

python -m tests.bench.serve_uvicorn ROOT MODEL PORT
"""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.artifacts.registry import find_model
from pipeline.artifacts.storage import Storage
from pipeline.models.predictor import Predictor
from serving.protocol.types import JSON_LENGTH
from serving.protocol.v2_request import parse_raw, parse_request
from serving.protocol.v2_response import build_reply

MAX_ROWS = 4096


def build(predictor: Predictor) -> Starlette:
    model = predictor.model

    async def infer(request: Request) -> Response:
        body, length = await request.body(), request.headers.get(JSON_LENGTH)
        if length == "0":
            request_body = parse_raw(body, model, binary=True, max_rows=MAX_ROWS)
        else:
            size = int(length) if length else None
            request_body = parse_request(body, size, model, max_rows=MAX_ROWS)
        reply = build_reply(model, request_body, predictor.predict(request_body.images))
        if reply.json_bytes is None:
            return Response(reply.body, media_type="application/json")
        return Response(reply.body, headers={JSON_LENGTH: str(reply.json_bytes)})

    return Starlette(routes=[Route(f"/v2/models/{model.name}/infer", infer, methods=["POST"])])


def main(root: str, ref: str, port: str) -> None:
    storage = Storage(root)
    app = build(Predictor(storage, find_model(storage, ref)))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
