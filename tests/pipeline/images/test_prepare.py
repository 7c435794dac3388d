from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.arrays import UInt8Array
from pipeline.contract import AS_IS, Preparation
from pipeline.errors import DataError
from pipeline.images.prepare import prepare_arrays, prepare_file

MASS = Preparation()
SHAPE = (28, 28)

GREY = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def drawing(width: int, height: int, ground: int = 255) -> UInt8Array:
    image = Image.new("L", (width, height), ground)
    box = (width * 0.4, height * 0.2, width * 0.6, height * 0.8)
    ImageDraw.Draw(image).rectangle(box, fill=255 - ground)
    return np.array(image)


def test_as_is_takes_only_grey_files_of_the_size() -> None:
    np.testing.assert_array_equal(prepare_file(encode(GREY), AS_IS, SHAPE).pixels, GREY)
    with pytest.raises(DataError, match="20 x 30, but 28 x 28 is expected"):
        prepare_file(encode(drawing(30, 20)), AS_IS, SHAPE)
    colour = np.zeros((*SHAPE, 3), np.uint8)
    colour[..., 0] = 200
    with pytest.raises(DataError, match="in colour"):
        prepare_file(encode(colour), AS_IS, SHAPE)


@pytest.mark.parametrize("fit", ["none", "stretch", "pad"])
@pytest.mark.parametrize("value", [0, 255])
def test_a_blank_image_is_an_image_where_no_ink_is_looked_for(fit: str, value: int) -> None:
    preparation = Preparation(fit=fit, invert="never", grey=True)  # type: ignore[arg-type]
    blank = np.full(SHAPE, value, np.uint8)
    np.testing.assert_array_equal(prepare_file(encode(blank), preparation, SHAPE).pixels, blank)


@pytest.mark.parametrize("size", [(28, 28), (28, 29), (300, 200)])
def test_a_blank_file_has_no_ink_whatever_its_size(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, size, np.uint8)
    faint = random.normal(200, 5, size).astype(np.uint8)
    for image in (np.zeros(size, np.uint8), np.full(size, 255, np.uint8), noise, faint):
        with pytest.raises(DataError, match="blank"):
            prepare_file(encode(image), MASS, SHAPE)


@pytest.mark.parametrize("ground", [0, 255])
@pytest.mark.parametrize("size", [(28, 28), (90, 70)])
def test_auto_makes_ink_light_on_dark(ground: int, size: tuple[int, int]) -> None:
    prepared = prepare_file(encode(drawing(*size, ground)), MASS, SHAPE)
    assert prepared.inverted == (ground == 255)
    assert prepared.fitted == (size != SHAPE)
    assert prepared.pixels[0, 0] == 0
    assert prepared.pixels[14, 14] == 255


@pytest.mark.parametrize("ground", [0, 255])
@pytest.mark.parametrize("size", [(28, 28), (90, 70)])
def test_centring_by_mass_keeps_dark_and_light_unless_asked(
    ground: int, size: tuple[int, int]
) -> None:
    body = encode(drawing(*size, ground))
    never = prepare_file(body, Preparation(invert="never"), SHAPE)
    always = prepare_file(body, Preparation(invert="always"), SHAPE)
    assert (never.pixels[0, 0], never.inverted) == (ground, False)
    assert (always.pixels[0, 0], always.inverted) == (255 - ground, True)
    np.testing.assert_array_equal(always.pixels, 255 - never.pixels)


def test_auto_leaves_arrays_and_always_inverts_them() -> None:
    light = drawing(28, 28)[None]
    np.testing.assert_array_equal(prepare_arrays(light, MASS, SHAPE), light)
    always = Preparation(invert="always")
    np.testing.assert_array_equal(prepare_arrays(light, always, SHAPE), 255 - light)
    large = prepare_arrays(drawing(90, 90)[None], MASS, SHAPE)
    assert large[0, 0, 0] == 255


def test_a_large_jpeg_never_passes_for_the_models_size() -> None:
    shape = (300, 300)
    for size in (300, 600, 1200):
        prepared = prepare_file(encode(drawing(size, size), "JPEG"), MASS, shape)
        assert prepared.fitted == (size != 300)


@pytest.mark.parametrize("bits", [1, 8, 9, 12, 14])
def test_16_bits_of_which_few_are_used_are_refused(bits: int) -> None:
    pixels = (drawing(28, 28, 0).astype(np.uint16) << 8) >> (16 - bits)
    for preparation in (AS_IS, MASS):
        with pytest.raises(DataError, match=f"only the lower {bits}"):
            prepare_file(encode(pixels), preparation, SHAPE)


def test_16_bits_that_are_used_are_read() -> None:
    pixels = drawing(28, 28, 0).astype(np.uint16) * 257
    prepared = prepare_file(encode(pixels), AS_IS, SHAPE)
    np.testing.assert_array_equal(prepared.pixels, drawing(28, 28, 0))
    blank = np.zeros(SHAPE, np.uint16)
    assert not prepare_file(encode(blank), AS_IS, SHAPE).pixels.any()
