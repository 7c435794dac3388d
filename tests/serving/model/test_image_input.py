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
from pipeline.contract import ImageSpec
from pipeline.errors import DataError
from pipeline.images.decode import MAX_PIXELS, PNG, decode_grayscale
from serving.errors import ImageInvalid, RequestInvalid, UnsupportedMedia
from serving.model.image_input import read_image
from tests.support.stripes_model import STRIPES, stripe

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def pixels_of(data: bytes, image: ImageSpec) -> UInt8Array:
    return read_image(data, image).pixels


IEND = 12
"""Bytes of the last chunk, after which all pixels have been checked."""


def png(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_header(width: int, height: int) -> bytes:
    whole = png(Image.fromarray(GREY))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG + header + whole[33:]


def test_grey_comes_through_unchanged() -> None:
    pixels = pixels_of(png(Image.fromarray(GREY)), STRIPES)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, GREY)


def test_an_interlaced_picture_is_one_like_others() -> None:
    rows = bytes(64 * 48)
    wide = STRIPES.__class__(height=48, width=64, class_names=("a",))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 0, 0, 0, 1))
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
    assert not pixels_of(data, wide).any()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_every_kind_of_picture_becomes_grey(mode: str) -> None:
    picture = Image.fromarray(stripe(1)).convert(mode)
    np.testing.assert_array_equal(pixels_of(png(picture), STRIPES), stripe(1))


def test_of_16_bits_the_upper_8_are_taken() -> None:
    picture = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert picture.mode == "I;16"
    np.testing.assert_array_equal(pixels_of(png(picture), STRIPES), GREY)


def test_what_is_transparent_is_black() -> None:
    picture = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    picture.putpixel((2, 1), (255, 255, 255, 128))
    pixels = pixels_of(png(picture), STRIPES)
    assert pixels[1, 2] == 128
    assert pixels.sum() == 128


def test_dark_ink_on_a_transparent_ground_is_ink() -> None:
    picture = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (2, 0, 4, 4))
    np.testing.assert_array_equal(pixels_of(png(picture), STRIPES), stripe(1))


def test_a_transparent_colour_of_a_palette_is_ground() -> None:
    picture = Image.fromarray(stripe(1)).convert("P")
    np.testing.assert_array_equal(pixels_of(png(picture, transparency=0), STRIPES), stripe(1))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.fromarray(stripe(k)) for k in range(3)]
    data = png(frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels_of(data, STRIPES), stripe(0))


@pytest.mark.parametrize("size", [(0, 0), (65535, 65535), (MAX_PIXELS + 1, 1), (2**31, 2**31)])
def test_a_size_beyond_the_bound_is_refused_unread(size: tuple[int, int]) -> None:
    with pytest.raises(ImageInvalid, match=f"{size[0]} wide and {size[1]} high, but one may have"):
        read_image(with_header(*size), STRIPES)


def test_a_second_header_does_not_change_the_size() -> None:
    huge = chunk(b"IHDR", struct.pack(">IIBBBBB", 65535, 65535, 8, 0, 0, 0, 0))
    good = png(Image.fromarray(GREY))
    with pytest.raises(ImageInvalid):
        pixels_of(good[:33] + huge + good[33:], STRIPES)


def test_a_jpeg_is_read() -> None:
    found = pixels_of(png(Image.fromarray(stripe(2)), "JPEG", quality=100), STRIPES)
    assert np.abs(found.astype(int) - stripe(2)).max() < 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_camera_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph = png(Image.fromarray(np.kron(GREY, np.ones((8, 8), np.uint8))), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(photograph)))
    np.testing.assert_array_equal(decode_grayscale(photograph), np.asarray(upright))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=5))
@example([(37, 1)])
@example([(35, 13)])
def test_odd_exif_data_break_nothing(changes: list[tuple[int, int]]) -> None:
    exif = Image.Exif()
    exif.update({0x010F: "Maker", 0x0112: 6, 0x011A: 72.0, 0x9003: "2026:01:01 00:00:00"})
    data = bytearray(png(Image.fromarray(GREY), "JPEG", exif=exif))
    start = data.index(b"Exif") + 6
    for at, byte in changes:
        data[start + at % (len(exif.tobytes()) - 6)] = byte
    with suppress(DataError):
        assert sorted(decode_grayscale(bytes(data)).shape) == [4, 6]


def test_raw_pixels_are_taken_as_they_are() -> None:
    np.testing.assert_array_equal(pixels_of(GREY.tobytes(), STRIPES), GREY)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedMedia, match="no PNG and no JPEG"):
        read_image(png(Image.fromarray(GREY), kind), STRIPES)


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="empty"):
        pixels_of(b"", STRIPES)


def test_a_text_bomb_is_refused() -> None:
    good = png(Image.fromarray(GREY))
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 << 20)))
    with pytest.raises(ImageInvalid, match="damaged"):
        pixels_of(good[:33] + bomb + good[33:], STRIPES)


def test_a_picture_cut_short_is_refused() -> None:
    good = png(Image.fromarray(GREY))
    for size in range(1, len(good) - IEND):
        with pytest.raises((ImageInvalid, UnsupportedMedia)):
            pixels_of(good[:size], STRIPES)


@given(at=st.integers(0, 10**6), change=st.integers(1, 255))
def test_a_changed_byte_is_refused(at: int, change: int) -> None:
    data = bytearray(png(Image.fromarray(GREY)))
    data[at % (len(data) - IEND)] ^= change
    with pytest.raises((ImageInvalid, UnsupportedMedia)):
        pixels_of(bytes(data), STRIPES)


@given(st.binary(max_size=400))
def test_no_bytes_after_the_header_break_the_decoder(tail: bytes) -> None:
    good = png(Image.fromarray(GREY))
    try:
        pixels = pixels_of(good[:33] + tail, STRIPES)
    except ImageInvalid:
        return
    assert pixels.shape == STRIPES.shape
