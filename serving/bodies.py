"""Bodies of requests and replies: bounded, packed, and with their headers."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving import encoding
from serving.errors import PayloadTooLarge, RequestInvalid, short
from serving.protocol import JSON_LENGTH, Json
from serving.settings import AppSettings


async def read_body(request: Request, settings: AppSettings) -> bytes:
    """The body, unpacked; it is never read further than its bound."""
    bound = settings.max_body_bytes
    too_large = PayloadTooLarge(
        f"The body is larger than {settings.max_body_mib} MiB. Send the images in several requests."
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > bound:
        raise too_large
    chunks, size = list[bytes](), 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        if (size := size + len(chunks[-1])) > bound:
            raise too_large
        more = message.get("more_body", False)
    packed = request.headers.get("content-encoding", "identity")
    return encoding.decode(b"".join(chunks), packed, max_bytes=bound)


async def read_files(request: Request, settings: AppSettings) -> list[bytes]:
    """The files of a form; RequestInvalid where there are none, or more than rows in a request."""
    body = await read_body(request, settings)

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    most = settings.max_request_rows
    form = Request(request.scope, receive).form(
        max_files=most, max_fields=0, max_part_size=settings.max_body_bytes
    )
    try:
        async with form as parts:
            files = [part for _, part in parts.multi_items() if isinstance(part, UploadFile)]
            found = [await file.read() for file in files]
    except HTTPException as error:
        raise RequestInvalid(
            f"Not a form with 1 to {most} files: {short(error.detail)}. Send each picture as "
            "a file, as by curl -F image=@digit.png."
        ) from None
    if not found:
        raise RequestInvalid("The form has no file. Send one, as by curl -F image=@digit.png.")
    return found


def json_length(request: Request) -> int | None:
    """The length of the JSON before binary tensors, or None where all is JSON."""
    if (header := request.headers.get(JSON_LENGTH)) is None:
        return None
    if not (header.isascii() and header.isdecimal() and len(header) < 20):
        raise RequestInvalid(
            f"Inference-Header-Content-Length is {short(header)}. Send the number of bytes of "
            "JSON, or 0 for raw pixels."
        )
    return int(header)


def respond_json(request: Request, content: Json | list[Json]) -> Response:
    """The content as JSON, packed as the client asks."""
    return respond(request, to_json(content), {"content-type": "application/json"})


def respond(request: Request, body: bytes, headers: dict[str, str]) -> Response:
    """The body, packed as the client asks where that is worth it."""
    wanted = encoding.accepted(request.headers.get("accept-encoding", ""))
    if wanted != "identity" and len(body) >= encoding.MIN_BYTES:
        body = encoding.encode(body, wanted)
        headers = headers | {"content-encoding": wanted}
    return Response(body, headers=headers)
