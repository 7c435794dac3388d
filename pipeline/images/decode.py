"""Decode PNG and JPEG files to grayscale pixels.

Gray is Pillow's `L` (0.299 R + 0.587 G + 0.114 B). A sample of 16 bits is cut to its upper 8 bits;
images that use only the lower 14 bits, as many cameras and scanners have, are refused.
An animation gives its first frame. A photograph is turned upright by its EXIF orientation.
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

PNG_HEADER = struct.Struct(">8x4x4sIIB")
"""Signature; length, then type of the first chunk, which is IHDR; width, height and bits."""

PNG_CHUNK = struct.Struct(">I4s")
"""Length of the data and type of a chunk. The data and the checksum of both follow."""

PNG_CHECKSUM = struct.Struct(">I")

MIN_OF_16_BITS = 1 << 14
"""Least brightest value, of 65,535, of an image that uses its 16 bits."""

MAX_TINT = 16
"""Largest difference of red, green and blue that counts as grey: scans are tinted a little."""

MAX_PIXELS = 1 << 24
"""Bounds the memory that one image file can take."""

ORIENTATION = 0x0112
"""The EXIF tag of a photograph's orientation."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns a photograph upright, by its EXIF orientation."""

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
"""The exceptions that Pillow raises for damaged files."""


def is_png_or_jpeg(data: bytes) -> bool:
    """Return whether the bytes begin with the signature of a PNG or a JPEG."""
    return data.startswith((PNG, JPEG))


def image_size(data: bytes) -> tuple[int, int]:
    """Return the width and height of a PNG or JPEG, as its header states them.

    Raise DataError if the header is damaged, or if there are more than MAX_PIXELS pixels.
    """
    if data.startswith(PNG):
        size = _png_header(data)[:2]
    else:
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                size = image.size
        except DECODE_ERRORS:
            raise DataError("The JPEG is damaged and cannot be read. Save it again.") from None
    _check_size(size)
    return size


def decode_grayscale(data: bytes, *, colour: bool = True, enough: int | None = None) -> UInt8Array:
    """Return the pixels of a PNG or JPEG, uint8 (height, width).

    If so many pixels on each side are `enough`, a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its
    size, which is several times faster. Raise DataError if the file is damaged, has more than
    MAX_PIXELS pixels, is nearly black for want of bits, or is in colour and `colour` does not allow
    it.
    """
    kind, bits = "JPEG", 8
    if data.startswith(PNG):
        kind = "PNG"
        # Check before Pillow reads on, so that a file that claims to be huge is never unpacked.
        width, height, bits = _png_header(data)
        _check_size((width, height))
    try:
        if kind == "PNG":
            # Otherwise a truncated or altered file may still decode.
            _check_checksums(data)
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            _check_size(image.size)
            if kind == "PNG" and image.size != (width, height):
                # Pillow takes the last of several headers, but bounds were checked by the first.
                raise ValueError("it has two headers")
            if enough:
                image.draft(None, (enough, enough))
            pixels = _to_grayscale(image, colour=colour)
    except DECODE_ERRORS:
        raise DataError(f"The {kind} is damaged and cannot be read. Save it again.") from None
    if bits == 16:
        # Pillow gives colours of 16 bits as 8.
        _check_bits(int(pixels.max()) << 8)
    return pixels


def _check_checksums(data: bytes) -> None:
    """Raise ValueError if a chunk of a PNG is altered, struct.error if the file is truncated."""
    view = memoryview(data)
    end, kind = len(PNG), b""
    while kind != b"IEND":
        length, kind = PNG_CHUNK.unpack_from(data, end)
        start, end = end + 4, end + PNG_CHUNK.size + length
        (checksum,) = PNG_CHECKSUM.unpack_from(data, end)
        if zlib.crc32(view[start:end]) != checksum:
            raise ValueError("a checksum is wrong")
        end += PNG_CHECKSUM.size


def _png_header(data: bytes) -> tuple[int, int, int]:
    """Return the width, the height and the bits of a sample."""
    try:
        kind, width, height, bits = PNG_HEADER.unpack_from(data)
    except struct.error:
        raise DataError("The PNG ends within its header. Send the whole file.") from None
    if kind != b"IHDR":
        raise DataError("The PNG does not begin with IHDR. Save it again.")
    return width, height, bits


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(
            f"The image is {width} wide and {height} high, but one may have 1 to {MAX_PIXELS:,} "
            "pixels. Scale it first."
        )


def _check_bits(brightest: int) -> None:
    if 0 < brightest < MIN_OF_16_BITS:
        raise DataError(
            f"The PNG has 16 bits a pixel, but uses only the lower {brightest.bit_length()}: it "
            "would be nearly black. Scale its values to 65,535, or save it with 8 bits."
        )


def _to_grayscale(image: Image.Image, *, colour: bool) -> UInt8Array:
    image.load()
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.uint16)
        _check_bits(int(samples.max()))
        return (samples >> 8).astype(np.uint8)
    # Pillow's exif_transpose also rewrites the EXIF data, which fails for some cameras.
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    if turn is not None:
        image = image.transpose(turn)
    if image.has_transparency_data:
        image = _fill_background(image.convert("RGBA"))
    if image.mode in ("L", "LA", "1"):
        return np.array(image.convert("L") if image.mode != "L" else image)
    if not colour:
        require_grey(np.asarray(image.convert("RGB")))
    return np.array(image.convert("L"))


def require_grey(channels: UInt8Array) -> None:
    """Raise DataError if red, green and blue, the last axis, differ by more than MAX_TINT."""
    if int(np.ptp(channels, axis=-1).max(initial=0)) > MAX_TINT:
        raise DataError(
            "The image is in colour. Make it grey, or build the dataset with --data.grey."
        )


def _fill_background(image: Image.Image) -> Image.Image:
    """Replace transparency by a background: white behind dark ink, black behind light ink."""
    alpha = np.asarray(image.getchannel("A"), np.float32)
    brightness = (np.asarray(image.convert("RGB").convert("L")) * alpha).sum()
    ink_is_dark = brightness < 127.5 * alpha.sum()
    return Image.alpha_composite(
        Image.new("RGBA", image.size, "white" if ink_is_dark else "black"), image
    )
