from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.arrays import UInt8Array
from pipeline.contract import ImageSpec
from pipeline.errors import DataError
from pipeline.images.normalize import normalize

IMAGE = ImageSpec(28, 28, ("a", "b"))


def draw(width: int, height: int, box: tuple[int, ...], *, ink: int, ground: int) -> UInt8Array:
    drawing = Image.new("L", (width, height), ground)
    ImageDraw.Draw(drawing).rectangle(box, fill=ink)
    return np.array(drawing)


def centre(pixels: UInt8Array) -> list[float]:
    """Return the centre of mass, in pixels from the upper left corner."""
    total = pixels.sum()
    return [float(pixels.sum(1 - axis) @ (np.arange(28) + 0.5) / total) for axis in (0, 1)]


@pytest.mark.parametrize(("ink", "ground", "inverts"), [(255, 0, False), (40, 200, True)])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (64, 64), (30, 900)])
def test_ink_is_scaled_into_the_box_and_centred_by_its_mass(
    width: int, height: int, ink: int, ground: int, inverts: bool
) -> None:
    drawing = draw(width, height, (3, 5, 13, 45), ink=ink, ground=ground)
    pixels, inverted, fitted = normalize(drawing, IMAGE)
    assert (inverted, fitted) == (inverts, True)
    assert pixels.shape == (28, 28)
    rows, columns = np.nonzero(pixels)
    # 11 by 41 pixels: the longer side fills 20.
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (20, 5)
    assert pixels.max() == 255
    assert centre(pixels) == pytest.approx([14, 14], abs=0.51)


def test_what_is_heavy_on_one_side_is_not_centred_by_its_box() -> None:
    drawing = draw(100, 100, (20, 20, 80, 30), ink=255, ground=0)
    drawing[20:81, 20:31] = 255
    pixels, _, _ = normalize(drawing, IMAGE)
    rows, columns = np.nonzero(pixels)
    assert rows.min() > 4
    assert columns.min() > 4
    assert centre(pixels) == pytest.approx([14, 14], abs=0.51)


@pytest.mark.parametrize("ground", [0, 255])
def test_an_image_of_the_models_size_is_at_most_inverted(ground: int) -> None:
    drawing = draw(28, 28, (2, 3, 5, 9), ink=255 - ground, ground=ground)
    pixels, inverted, fitted = normalize(drawing, IMAGE)
    assert (inverted, fitted) == (ground == 255, False)
    np.testing.assert_array_equal(pixels, draw(28, 28, (2, 3, 5, 9), ink=255, ground=0))


@pytest.mark.parametrize("ground", [0, 90, 255])
def test_a_blank_image_is_rejected(ground: int) -> None:
    with pytest.raises(DataError, match="blank"):
        normalize(np.full((100, 80), ground, np.uint8), IMAGE)


def test_dust_is_not_fitted() -> None:
    drawing = np.zeros((2000, 2000), np.uint8)
    drawing[0, 0] = drawing[-1, -1] = 255
    pixels, _, _ = normalize(drawing, IMAGE)
    assert pixels.shape == (28, 28)
