"""The image files of a form. `serving.http.decoder` runs this in its process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pipeline.contract import ImageSpec
from pipeline.images.prepare import PreparedImage
from serving.errors import RequestInvalid, safe_repr
from serving.protocol.image_input import read_images


def read_form(
    content_type: str, body: bytes, image: ImageSpec, *, max_files: int, max_pixels: int
) -> list[PreparedImage]:
    """Return the model's inputs for the files of a form.

    Raise RequestInvalid if there are none or more than `max_files`, and the errors of
    `read_images`.
    """
    return read_images(asyncio.run(_files(content_type, body, max_files)), image, max_pixels)


async def _files(content_type: str, body: bytes, max_files: int) -> list[bytes]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    parser = MultiPartParser(
        Headers({"content-type": content_type}),
        stream(),
        max_files=max_files,
        max_fields=0,
        max_part_size=len(body),
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
