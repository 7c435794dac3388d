"""PNG and JPEG -> grey pixels.

Grey is Pillow's `L` (0.299 R + 0.587 G + 0.114 B). Of 16 bits the upper 8 are taken, of an
animation the first frame; a photograph is turned as its EXIF data say.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"

JPEG = b"\xff\xd8\xff"

PNG_HEADER = struct.Struct(">8x4x4sII")
"""Signature, length and kind of the first chunk, and, as that is IHDR, width and height."""

MAX_PIXELS = 1 << 24

ORIENTATION = 0x0112

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a photograph upright, by its EXIF orientation."""

DECODE_ERRORS = (
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
)
"""What Pillow raises for broken pictures."""


def is_png_or_jpeg(data: bytes) -> bool:
    """Whether it begins as a PNG or a JPEG."""
    return data.startswith((PNG, JPEG))


def decode_grayscale(data: bytes) -> UInt8Array:
    """The pixels of a PNG or JPEG, uint8 (height, width); DataError where it is broken or large."""
    kind = "PNG" if data.startswith(PNG) else "JPEG"
    if kind == "PNG":
        # Checked before Pillow reads on, so no picture that claims to be huge is ever unpacked.
        _check_size(_size_in_header(data))
    try:
        with _open(data, kind) as picture:
            _check_size(picture.size)
            # Without this a file that was cut short or changed on its way may still be decoded.
            picture.verify()
        with _open(data, kind) as picture:
            return _to_grayscale(picture)
    except DECODE_ERRORS:
        raise DataError(f"The {kind} is damaged and cannot be read. Save it again.") from None


def _open(data: bytes, kind: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=[kind])


def _size_in_header(data: bytes) -> tuple[int, int]:
    try:
        kind, width, height = PNG_HEADER.unpack_from(data)
    except struct.error:
        raise DataError("The PNG ends within its header. Send the whole file.") from None
    if kind != b"IHDR":
        raise DataError("The PNG does not begin with IHDR. Save it again.")
    return width, height


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(
            f"The image is {width} wide and {height} high, but one may have 1 to {MAX_PIXELS:,} "
            "pixels. Scale it first."
        )


def _to_grayscale(picture: Image.Image) -> UInt8Array:
    picture.load()
    if picture.mode.startswith("I"):
        return (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
    # Pillow's exif_transpose also writes the EXIF data anew, and breaks on those of some cameras.
    if (turn := UPRIGHT.get(picture.getexif().get(ORIENTATION, 1))) is not None:
        picture = picture.transpose(turn)
    if picture.has_transparency_data:
        picture = _on_ground(picture.convert("RGBA"))
    return np.array(picture.convert("L"))


def _on_ground(picture: Image.Image) -> Image.Image:
    """What is transparent becomes ground: white where the ink is dark, black where it is light."""
    alpha = np.asarray(picture.getchannel("A"), np.float32)
    light = (np.asarray(picture.convert("RGB").convert("L")) * alpha).sum()
    dark = light < 127.5 * alpha.sum()
    return Image.alpha_composite(
        Image.new("RGBA", picture.size, "white" if dark else "black"), picture
    )
