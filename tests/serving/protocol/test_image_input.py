import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.arrays import UInt8Array
from pipeline.contract import AS_IS, ImageSpec
from pipeline.errors import DataError
from pipeline.images.decode import MAX_PIXELS, PNG, decode_grayscale
from serving.errors import ImageInvalid, RequestInvalid, UnsupportedMedia
from serving.protocol.image_input import read_image
from tests.support.stripes_model import STRIPES, stripe

GRAY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10

ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held."""


def pixels_of(body: bytes, image: ImageSpec) -> UInt8Array:
    return read_image(body, image).pixels


IEND_BYTES = 12
"""Size of a PNG's last chunk. All pixels have been checked before it."""


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with_size(width: int, height: int) -> bytes:
    """Return a PNG of 6 by 4 pixels whose header says another size."""
    whole = png(Image.fromarray(GRAY))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG + header + whole[33:]


def test_a_grayscale_png_is_read_unchanged() -> None:
    pixels = pixels_of(png(Image.fromarray(GRAY)), STRIPES)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, GRAY)


def test_an_interlaced_png_is_read() -> None:
    rows = bytes(64 * 48)
    large = ImageSpec(48, 64, ("a",), AS_IS)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 0, 0, 0, 1))
    # The seven passes of Adam7: first column and row, then steps (PNG 1.2, 2.6).
    passes = b"".join(
        (b"\0" + rows[: -(-(64 - x) // dx)]) * -(-(48 - y) // dy)
        for x, y, dx, dy in [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]
    )
    data = PNG + header + chunk(b"IDAT", zlib.compress(passes)) + chunk(b"IEND", b"")
    assert not pixels_of(data, large).any()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_every_colour_mode_becomes_grayscale(mode: str) -> None:
    image = Image.fromarray(stripe(1)).convert(mode)
    np.testing.assert_array_equal(pixels_of(png(image), STRIPES), stripe(1))


def test_16_bit_pixels_keep_their_upper_8_bits() -> None:
    image = Image.fromarray(GRAY.astype(np.uint16) * 257)
    assert image.mode == "I;16"
    np.testing.assert_array_equal(pixels_of(png(image), STRIPES), GRAY)


def test_transparent_pixels_become_black() -> None:
    image = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    image.putpixel((2, 1), (255, 255, 255, 128))
    pixels = pixels_of(png(image), STRIPES)
    assert pixels[1, 2] == 128
    assert pixels.sum() == 128


def test_dark_ink_on_a_transparent_background_is_ink() -> None:
    image = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (2, 0, 4, 4))
    np.testing.assert_array_equal(pixels_of(png(image), STRIPES), stripe(1))


def test_a_transparent_palette_colour_is_background() -> None:
    image = Image.fromarray(stripe(1)).convert("P")
    np.testing.assert_array_equal(pixels_of(png(image, transparency=0), STRIPES), stripe(1))


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.fromarray(stripe(k)) for k in range(3)]
    data = png(frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels_of(data, STRIPES), stripe(0))


@pytest.mark.parametrize("size", [(0, 0), (65535, 65535), (MAX_PIXELS + 1, 1), (2**31, 2**31)])
def test_an_image_beyond_the_size_limit_is_rejected_unread(size: tuple[int, int]) -> None:
    with pytest.raises(ImageInvalid, match=f"{size[0]} wide and {size[1]} high, but one may have"):
        read_image(png_with_size(*size), STRIPES)


def test_a_second_header_does_not_change_the_size() -> None:
    huge = chunk(b"IHDR", struct.pack(">IIBBBBB", 65535, 65535, 8, 0, 0, 0, 0))
    good = png(Image.fromarray(GRAY))
    with pytest.raises(ImageInvalid):
        pixels_of(good[:33] + huge + good[33:], STRIPES)


def test_the_first_header_must_say_the_size_of_the_pixels() -> None:
    """Otherwise an image would count as 24 pixels, and be decoded as 120,000."""
    first = chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 4, 8, 0, 0, 0, 0))
    large = png(Image.fromarray(np.zeros((300, 400), np.uint8)))
    with pytest.raises(ImageInvalid, match="damaged"):
        pixels_of(PNG + first + large[len(PNG) :], STRIPES)


def test_a_jpeg_is_read() -> None:
    pixels = pixels_of(png(Image.fromarray(stripe(2)), "JPEG", quality=100), STRIPES)
    assert np.abs(pixels.astype(int) - stripe(2)).max() < 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_rotated_as_its_exif_data_say(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photograph = png(Image.fromarray(np.kron(GRAY, np.ones((8, 8), np.uint8))), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(photograph)))
    np.testing.assert_array_equal(decode_grayscale(photograph), np.asarray(upright))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=5))
@example([(37, 1)])
@example([(35, 13)])
def test_damaged_exif_data_raise_only_data_errors(changes: list[tuple[int, int]]) -> None:
    exif = Image.Exif()
    exif.update({0x010F: "Maker", ORIENTATION: 6, 0x011A: 72.0, 0x9003: "2026:01:01 00:00:00"})
    data = bytearray(png(Image.fromarray(GRAY), "JPEG", exif=exif))
    start = data.index(b"Exif") + 6
    for offset, byte in changes:
        data[start + offset % (len(exif.tobytes()) - 6)] = byte
    with suppress(DataError):
        assert sorted(decode_grayscale(bytes(data)).shape) == [4, 6]


def test_raw_pixels_are_taken_unchanged() -> None:
    np.testing.assert_array_equal(pixels_of(GRAY.tobytes(), STRIPES), GRAY)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP"])
def test_other_image_formats_are_rejected(kind: str) -> None:
    with pytest.raises(UnsupportedMedia, match="neither a PNG nor a JPEG"):
        read_image(png(Image.fromarray(GRAY), kind), STRIPES)


def test_an_empty_body_is_rejected() -> None:
    with pytest.raises(RequestInvalid, match="empty"):
        pixels_of(b"", STRIPES)


def test_a_compressed_text_bomb_is_rejected() -> None:
    good = png(Image.fromarray(GRAY))
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 << 20)))
    with pytest.raises(ImageInvalid, match="damaged"):
        pixels_of(good[:33] + bomb + good[33:], STRIPES)


def test_a_truncated_image_is_rejected() -> None:
    good = png(Image.fromarray(GRAY))
    for size in range(1, len(good) - IEND_BYTES):
        with pytest.raises((ImageInvalid, UnsupportedMedia)):
            pixels_of(good[:size], STRIPES)


@given(offset=st.integers(0, 10**6), change=st.integers(1, 255))
def test_a_changed_byte_is_rejected(offset: int, change: int) -> None:
    data = bytearray(png(Image.fromarray(GRAY)))
    data[offset % (len(data) - IEND_BYTES)] ^= change
    with pytest.raises((ImageInvalid, UnsupportedMedia)):
        pixels_of(bytes(data), STRIPES)


@given(st.binary(max_size=400))
def test_any_bytes_after_the_header_are_decoded_or_rejected(tail: bytes) -> None:
    good = png(Image.fromarray(GRAY))
    try:
        pixels = pixels_of(good[:33] + tail, STRIPES)
    except ImageInvalid:
        return
    assert pixels.shape == STRIPES.shape
