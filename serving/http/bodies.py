"""Read the bodies of requests within their limits, and encode those of responses.

The limits are fields of `serving.config.AppSettings`:

    max_body_bytes      bytes of a body, as sent and again after decompression (--max-body-mib)
    max_request_rows    files of a form                                        (--max-request-rows)

HAProxy, in front, rejects only a Content-Length over the first one; here both are enforced.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from pydantic_core import to_json
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serving.config import AppSettings
from serving.errors import PayloadTooLarge, RequestInvalid, safe_repr
from serving.http import compression
from serving.http.application import HttpRequest, HttpResponse
from serving.protocol.types import JSON_LENGTH, Json

LENGTH_DIGITS = 20
"""Digits that are read of a length: more than any limit has, and few enough for int()."""


async def read_body(request: HttpRequest, settings: AppSettings) -> bytes:
    """Return the decompressed body.

    Raise PayloadTooLarge as soon as the declared length, the bytes received or the decompressed
    bytes exceed `max_body_bytes`; nothing is read after that.
    """
    max_bytes = settings.max_body_bytes
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:LENGTH_DIGITS]) > max_bytes:
        raise _too_large(settings)
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
        if size > max_bytes:
            raise _too_large(settings)
        more = message.get("more_body", False)
    encoding = request.headers.get("content-encoding", "identity")
    return compression.decompress(b"".join(chunks), encoding, max_bytes=max_bytes)


async def read_files(request: HttpRequest, settings: AppSettings) -> list[bytes]:
    """Return the files of a form.

    Raise RequestInvalid if there are none or more than `max_request_rows`, and PayloadTooLarge as
    `read_body` does.
    """
    body = await read_body(request, settings)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    max_files = settings.max_request_rows
    parser = MultiPartParser(
        Headers(request.headers),
        stream(),
        max_files=max_files,
        max_fields=0,
        max_part_size=settings.max_body_bytes,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestInvalid(
            f"Not a form with 1 to {max_files} files: {safe_repr(error.message)}. Send each image "
            "as a file, for example with curl -F image=@digit.png."
        ) from None
    uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    contents = [await upload.read() for upload in uploads]
    await form.close()
    if not contents:
        raise RequestInvalid(
            "The form has no file. Send one, for example with curl -F image=@digit.png."
        )
    return contents


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
