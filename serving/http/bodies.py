"""Read the bodies of requests within their limits, and encode those of responses.

The limits are fields of `serving.config.AppSettings`:

    max_body_bytes      bytes of a body, as sent and again after decompression (--max-body-mib)
    max_bodies_mib      MiB of all bodies at once                              (--max-bodies-mib)

HAProxy, in front, rejects only a Content-Length over the first one; here both are enforced.
"""

from __future__ import annotations

import asyncio
from functools import partial

from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from serving.config import AppSettings
from serving.errors import BodyTimeout, PayloadTooLarge, RequestInvalid, safe_repr
from serving.http import compression
from serving.http.application import HttpRequest, HttpResponse
from serving.protocol.types import JSON_LENGTH, Json

BODY_TIMEOUT_S = 10
"""Time for a body to arrive, to which each MiB that a body may have adds MIB_TIMEOUT_S."""

MIB_TIMEOUT_S = 1

QUICK_BYTES = 1 << 14
"""A compressed body of this size is unpacked in the event loop: it has 16 MiB at most."""

LENGTH_DIGITS = 20
"""Digits that are read of a length: more than any limit has, and few enough for int()."""


async def read_body(request: HttpRequest, settings: AppSettings) -> bytes:
    """Return the decompressed body; from then on, the request is cancelled if its client leaves.

    Raise PayloadTooLarge as soon as the declared length, the bytes received or the decompressed
    bytes exceed `max_body_bytes`; nothing is read after that. Raise Overloaded if the bodies of
    other requests leave no room for it, and BodyTimeout if it does not arrive in time.
    """
    max_bytes = settings.max_body_bytes
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:LENGTH_DIGITS]) > max_bytes:
        raise _too_large(settings)
    timeout_s = BODY_TIMEOUT_S + settings.max_body_mib * MIB_TIMEOUT_S
    request.client.start(timeout_s)
    try:
        body = await _receive(request, settings)
    except asyncio.CancelledError:
        if not request.client.late:
            raise
        raise BodyTimeout(
            f"The body did not arrive within {timeout_s:.0f} s. Send it again, in smaller parts."
        ) from None
    request.client.body_arrived()
    encoding = request.headers.get("content-encoding", "identity")
    if encoding == "identity":
        return body
    unpack = partial(compression.decompress, body, encoding, max_bytes=max_bytes)
    plain = unpack() if len(body) <= QUICK_BYTES else await asyncio.to_thread(unpack)
    request.memory.take(len(plain))
    return plain


async def _receive(request: HttpRequest, settings: AppSettings) -> bytes:
    """Return the body as it is sent."""
    chunks = list[bytes]()
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        if size > settings.max_body_bytes:
            raise _too_large(settings)
        request.memory.take(size)
        more = message.get("more_body", False)
    return b"".join(chunks)


def json_length(request: HttpRequest) -> int | None:
    """Return the length of the JSON before binary tensors; None if the whole body is JSON."""
    header = request.headers.get(JSON_LENGTH)
    if header is None:
        return None
    if not (header.isascii() and header.isdecimal() and len(header) < LENGTH_DIGITS):
        raise RequestInvalid(
            f"Inference-Header-Content-Length is {safe_repr(header)}. Send the number of bytes of "
            "JSON, or 0 for raw pixels."
        )
    return int(header)


def respond_json(request: HttpRequest, content: Json | list[Json]) -> HttpResponse:
    """Return a response in JSON, compressed if the client accepts that."""
    return respond(request, to_json(content), {"content-type": "application/json"})


def respond(request: HttpRequest, body: bytes, headers: dict[str, str]) -> HttpResponse:
    """Return a response, compressed if the client accepts that and the body is not short.

    Binary tensors are not compressed unless the client refuses anything else: floats hardly shrink.
    """
    if len(body) >= compression.MIN_BYTES:
        accepted = request.headers.get("accept-encoding", "")
        tensors = headers["content-type"] == "application/octet-stream"
        encoding = compression.negotiate(accepted, prefer_plain=tensors)
        headers = headers | {"vary": "accept-encoding"}
        if encoding != "identity":
            body = compression.compress(body, encoding)
            headers = headers | {"content-encoding": encoding}
    return HttpResponse(body, headers)


def _too_large(settings: AppSettings) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The body is larger than {settings.max_body_mib} MiB. Send the images in several requests."
    )
