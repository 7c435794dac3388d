"""PNG -> raw pixels, uint8 (height, width). Knows nothing of HTTP.

A picture becomes grey as Pillow's `L` has it (0.299 R + 0.587 G + 0.114 B). What is transparent is
laid over black, because the data sets draw in white on black: where there is no ink, there is 0.
Of 16 bits the upper 8 are taken, of an animation the first frame. Nothing is resized or inverted.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from pipeline.contract import ImageSpec
from serving.errors import ImageInvalid, RequestInvalid, UnsupportedMedia
from serving.protocol import Images

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">8x4x4sII")
"""Signature, length and kind of the first chunk, and, as that is IHDR, width and height."""

BROKEN = (
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
)
"""What Pillow raises for broken PNG."""


def decode_png(data: bytes, image: ImageSpec) -> Images:
    """Raw pixels of a PNG of exactly the model's size.

    Raises UnsupportedMedia for what is no PNG, ImageInvalid for a broken PNG or another size.
    """
    if not data:
        raise RequestInvalid("The body is empty. Send a PNG, as by curl --data-binary @digit.png.")
    if not data.startswith(SIGNATURE):
        raise UnsupportedMedia(
            "The body is not a PNG. Send the bytes of a PNG file themselves, as by "
            "curl --data-binary @digit.png."
        )
    # Checked before Pillow reads on, so no picture that claims to be huge is ever unpacked.
    _check_size(_size_in_header(data), image)
    try:
        with _open(data) as picture:
            _check_size(picture.size, image)
            # Without this a file that was cut short or changed on its way may still be decoded.
            picture.verify()
        with _open(data) as picture:
            return _grey(picture)
    except BROKEN:
        raise ImageInvalid("The PNG is damaged and cannot be read. Save it again.") from None


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=["PNG"])


def _size_in_header(data: bytes) -> tuple[int, int]:
    try:
        kind, width, height = HEADER.unpack_from(data)
    except struct.error:
        raise ImageInvalid("The PNG ends within its header. Send the whole file.") from None
    if kind != b"IHDR":
        raise ImageInvalid("The PNG does not begin with IHDR. Save it again.")
    return width, height


def _check_size(size: tuple[int, int], image: ImageSpec) -> None:
    if size != (image.width, image.height):
        raise ImageInvalid(
            f"The image is {size[0]} wide and {size[1]} high, but the model takes {image.width} "
            f"by {image.height}. Crop and scale it first."
        )


def _grey(picture: Image.Image) -> Images:
    picture.load()
    if picture.mode.startswith("I"):
        return (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
    if picture.has_transparency_data:
        black = Image.new("RGBA", picture.size, "black")
        picture = Image.alpha_composite(black, picture.convert("RGBA"))
    return np.array(picture.convert("L"))
