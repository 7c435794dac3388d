from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.arrays import UInt8Array
from pipeline.images.ink import find_ink, has_dark_ink
from pipeline.images.normalize import centre_ink

SHAPE = (28, 28)


def draw(width: int, height: int, box: tuple[int, ...], *, ink: int, ground: int) -> UInt8Array:
    drawing = Image.new("L", (width, height), ground)
    ImageDraw.Draw(drawing).rectangle(box, fill=ink)
    return np.array(drawing)


def normalize(drawing: UInt8Array) -> UInt8Array:
    return centre_ink(find_ink(drawing if has_dark_ink(drawing) else 255 - drawing), SHAPE)


def centre(pixels: UInt8Array) -> list[float]:
    """Return the centre of mass; 0 is the centre of the first pixel."""
    return [float(pixels.sum(1 - axis) @ np.arange(28) / pixels.sum()) for axis in (0, 1)]


@pytest.mark.parametrize(("ink", "ground"), [(255, 0), (40, 200)])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (64, 64), (60, 900)])
def test_ink_is_scaled_into_the_box_and_centred_by_its_mass(
    width: int, height: int, ink: int, ground: int
) -> None:
    pixels = normalize(draw(width, height, (3, 5, 13, 45), ink=ink, ground=ground))
    assert pixels.shape == SHAPE
    rows, columns = np.nonzero(pixels >= 20)
    # 11 by 41 pixels: the longer side fills 20, with its soft edge.
    assert np.ptp(rows) + 1 == 20
    assert 5 <= np.ptp(columns) + 1 <= 8
    assert pixels.max() >= 250
    assert centre(pixels) == pytest.approx([14, 14], abs=0.51)


def test_what_is_heavy_on_one_side_is_not_centred_by_its_box() -> None:
    drawing = draw(100, 100, (20, 20, 80, 30), ink=255, ground=0)
    drawing[20:81, 20:31] = 255
    pixels = normalize(drawing)
    rows, columns = np.nonzero(pixels)
    assert rows.min() > 4
    assert columns.min() > 4
    assert centre(pixels) == pytest.approx([14, 14], abs=0.51)


def test_a_thin_stroke_becomes_as_thick_as_a_pen_of_mnist() -> None:
    thin = normalize(draw(400, 400, (200, 100, 201, 300), ink=0, ground=220))
    thick = normalize(draw(400, 400, (190, 100, 210, 300), ink=0, ground=220))
    assert thin.sum() == pytest.approx(thick.sum(), rel=0.3)


def test_a_leaning_stroke_is_set_more_upright() -> None:
    drawing = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(drawing).line((40, 40, 160, 160), fill=0, width=16)
    _, columns = np.nonzero(normalize(np.array(drawing)))
    assert np.ptp(columns) < 10
