from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.arrays import UInt8Array
from pipeline.errors import DataError
from pipeline.images.ink import find_ink, has_dark_ink

SIZE = 200

BAR = (90, 60, 105, 140)
"""A stroke: left, top, right and bottom pixel."""


def paper(light: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None) -> UInt8Array:
    """Return a dark stroke on white paper in this light, 0 to 1."""
    drawing = Image.new("L", (SIZE, SIZE), 230)
    ImageDraw.Draw(drawing).rectangle(BAR, fill=50)
    pixels = np.array(drawing)
    return pixels if light is None else (pixels * light).astype(np.uint8)


def assert_finds_the_bar(image: UInt8Array) -> None:
    rows, columns = np.nonzero(find_ink(image))
    box = (columns.min(), rows.min(), columns.max(), rows.max())
    assert box == pytest.approx(BAR, abs=2)
    assert len(rows) == pytest.approx(16 * 81, rel=0.15)


def test_ink_is_found_in_uneven_light() -> None:
    assert_finds_the_bar(paper(np.linspace(0.2, 1, SIZE)[:, None] * np.ones(SIZE)))


def test_the_edge_of_a_shadow_is_not_ink() -> None:
    for edge in (20, 60, 150):
        shadow = np.where(np.arange(SIZE) < edge, 0.5, 1.0)
        assert_finds_the_bar(paper(shadow[:, None] * np.ones(SIZE)))


@pytest.mark.parametrize("slope", [0, 0.05, -0.1])
def test_the_lines_of_paper_are_not_ink(slope: float) -> None:
    image = paper()
    rows = np.arange(SIZE)[:, None] - slope * np.arange(SIZE)
    lined = np.where(rows % 25 < 2, np.minimum(image, 100), image).astype(np.uint8)
    rows, columns = np.nonzero(find_ink(lined))
    assert np.ptp(columns) < 24
    assert 75 < np.ptp(rows) < 90


def test_dust_beside_a_stroke_is_not_ink() -> None:
    image = paper()
    image[30:32, 30:32] = 0
    assert_finds_the_bar(image)


def test_the_darker_or_lighter_minority_is_ink() -> None:
    assert has_dark_ink(paper())
    assert not has_dark_ink(255 - paper())
    assert has_dark_ink(paper(np.full((SIZE, SIZE), 0.4)))


@pytest.mark.parametrize("ground", [0, 90, 255])
@pytest.mark.parametrize("noise", [0, 3, 40])
@pytest.mark.parametrize("side", [50, 300])
def test_a_blank_image_is_rejected(ground: int, noise: int, side: int) -> None:
    random = np.random.default_rng(0)
    pixels = ground + random.normal(0, noise, (side, side))
    with pytest.raises(DataError, match="blank"):
        find_ink(pixels.clip(0, 255).astype(np.uint8))


def test_dust_alone_is_rejected() -> None:
    drawing = np.full((2000, 2000), 255, np.uint8)
    drawing[40:60, 40:60] = drawing[-60:-40, -60:-40] = 0
    with pytest.raises(DataError, match="specks|blank"):
        find_ink(drawing)


def test_lines_of_paper_alone_are_rejected() -> None:
    image = np.full((100, 100), 240, np.uint8)
    image[::20] = 20
    with pytest.raises(DataError, match="lines"):
        find_ink(image)


def test_thick_ink_from_edge_to_edge_is_ink() -> None:
    image = np.full((100, 100), 240, np.uint8)
    image[:, 40:50] = 20
    assert find_ink(image).sum() == 1000


@pytest.mark.parametrize("ground", [0, 255])
def test_a_thick_stroke_along_the_edge_of_a_drawing_is_ink(ground: int) -> None:
    drawing = np.full((40, 60), ground, np.uint8)
    drawing[2:38, 42:] = 255 - ground
    assert has_dark_ink(drawing) == (ground == 255)
    mask = find_ink(drawing if ground else 255 - drawing)
    np.testing.assert_array_equal(mask, drawing != ground)
