"""Bodies of calls and responses: bounded, packed, and with their headers."""

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


async def read_body(call: HttpRequest, settings: AppSettings) -> bytes:
    """The body, unpacked; it is never read further than its bound."""
    bound = settings.max_body_bytes
    declared = call.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > bound:
        raise _too_large(settings)
    chunks, size = list[bytes](), 0
    more = True
    while more:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        if (size := size + len(chunks[-1])) > bound:
            raise _too_large(settings)
        more = message.get("more_body", False)
    packed = call.headers.get("content-encoding", "identity")
    return compression.decompress(b"".join(chunks), packed, max_bytes=bound)


async def read_files(call: HttpRequest, settings: AppSettings) -> list[bytes]:
    """The files of a form; RequestInvalid where there are none, or more than rows in a request."""
    body = await read_body(call, settings)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    most = settings.max_request_rows
    parser = MultiPartParser(
        Headers(call.headers),
        stream(),
        max_files=most,
        max_fields=0,
        max_part_size=settings.max_body_bytes,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestInvalid(
            f"Not a form with 1 to {most} files: {safe_repr(error.message)}. Send each picture as "
            "a file, as by curl -F image=@digit.png."
        ) from None
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    found = [await file.read() for file in files]
    await form.close()
    if not found:
        raise RequestInvalid("The form has no file. Send one, as by curl -F image=@digit.png.")
    return found


def json_length(call: HttpRequest) -> int | None:
    """The length of the JSON before binary tensors, or None where all is JSON."""
    if (header := call.headers.get(JSON_LENGTH)) is None:
        return None
    if not (header.isascii() and header.isdecimal() and len(header) < 20):
        raise RequestInvalid(
            f"Inference-Header-Content-Length is {safe_repr(header)}. Send the number of bytes of "
            "JSON, or 0 for raw pixels."
        )
    return int(header)


def respond_json(call: HttpRequest, content: Json | list[Json]) -> HttpResponse:
    """The content as JSON, packed as the client asks."""
    return respond(call, to_json(content), {"content-type": "application/json"})


def respond(call: HttpRequest, body: bytes, headers: dict[str, str]) -> HttpResponse:
    """The body, packed as the client asks where that is worth it."""
    if len(body) >= compression.MIN_BYTES:
        wanted = compression.negotiate(call.headers.get("accept-encoding", ""))
        if wanted != "identity":
            body = compression.compress(body, wanted)
            headers = headers | {"content-encoding": wanted}
    return HttpResponse(body, headers)


def _too_large(settings: AppSettings) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The body is larger than {settings.max_body_mib} MiB. Send the images in several requests."
    )
