"""Find what is written in an image: on paper or a board, in uneven light, on ruled paper.

All steps work on an image of at most FRAME pixels a side, so their time does not depend on the
size of a photograph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.contract import PIXEL_MAX
from pipeline.errors import DataError
from pipeline.images.lines import BoolArray, without_lines

FloatArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

FRAME = 256
"""Longer side of the image in which ink is found, in pixels."""

COARSE = 32
"""Longer side of the image in which it is decided whether the ink is dark."""

GROUND = 64
"""Longer side of the image in which the ground's light is measured."""

LEAST_LIGHT = np.float32(64)
"""Light, of 255, below which a ground counts as this light: differences on black are noise."""

STROKE = 0.3
"""Strokes are narrower than this share of the image's longer side."""

MIN_CONTRAST = 0.1
"""Share of the ground's light that ink must absorb."""

MIN_SIGNAL = 5
"""The contrast of ink, in standard deviations of the noise: of 65,536 pixels of noise alone, the
darkest differ by 4."""

CUT = 0.45
"""Share of the ink's contrast from which a pixel counts as ink: lines of paper are fainter."""

PEAK_PIXELS = 60
"""The contrast of ink is the mean of so many of its strongest pixels: of 80 or more that the
thinnest legible stroke has in the frame."""

MIN_SIDE = 0.04
"""Least height or width of what is written, as a share of the image's longer side."""

MIN_PIXELS = 6
"""Least height or width of what is written, in pixels of the frame."""

MIN_PART = 0.04
"""Least area of a separate stroke, such as the bar of a 5, as a share of the largest."""

MAX_GAP = 0.25
"""Largest distance of a separate stroke, as a share of the size of the largest."""

EDGE_WEIGHT = 0.2
"""Weight of an area for each edge of the image that it touches: it may be a shadow."""


class Part(NamedTuple):
    """Connected pixels: the (row, begin, end) of their runs, their area and their box."""

    runs: list[tuple[int, int, int]]
    area: int
    top: int
    bottom: int
    left: int
    right: int

    def edges(self, shape: tuple[int, ...]) -> int:
        """Return how many edges of an image of this shape it touches."""
        at_edge = (self.top == 0, self.left == 0, self.bottom == shape[0], self.right == shape[1])
        return sum(at_edge)

    def distance(self, other: Part) -> int:
        return max(
            other.top - self.bottom,
            self.top - other.bottom,
            other.left - self.right,
            self.left - other.right,
            0,
        )


def has_dark_ink(image: UInt8Array) -> bool:
    """Return whether what differs most from its surroundings is darker than them."""
    flat = _flat_ground(image)
    if flat is not None:
        return int(image.sum(dtype=np.int64)) < flat * image.size
    small = _shrink(image, COARSE).astype(np.float32)
    side = int(0.4 * max(small.shape)) | 1
    windows = sliding_window_view(np.pad(small, side // 2, mode="edge"), (side, side))
    return bool(((small - np.median(windows, axis=(2, 3))) ** 3).sum() < 0)


def find_ink(image: UInt8Array) -> BoolArray:
    """Return which pixels are dark ink, at most FRAME a side; the image may be of any size.

    Raise DataError if it is blank, or has only noise, specks, or the lines of paper.
    """
    absorbed = _absorbed(_shrink(image, FRAME))
    contrast, ground = _strongest(absorbed), float(np.median(absorbed))
    # Not of neighbours: resizing makes their noise alike.
    noise = _noise(absorbed, apart=3)
    _check(contrast - ground, noise)
    mask = absorbed >= max(CUT * contrast, ground + 2.5 * noise)
    faint = absorbed >= max(CUT / 2 * contrast, ground + 1.5 * noise)
    return _choose(without_lines(mask, faint))


def require_ink(image: UInt8Array, ground: int) -> None:
    """Raise DataError if an image of the model's size, with this ground, is blank or only noise."""
    away = (image.astype(np.float32) - ground) / np.float32(PIXEL_MAX)
    _check(_strongest(np.abs(away)), _noise(away, apart=1))


def _shrink(image: UInt8Array, longer: int) -> UInt8Array:
    scale = longer / max(image.shape)
    if scale >= 1:
        return image
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _absorbed(image: UInt8Array) -> FloatArray:
    """Return the share of light that each pixel absorbs, beside its ground without strokes."""
    flat = _flat_ground(image)
    light = np.full(image.shape, flat, np.float32) if flat is not None else _uneven_ground(image)
    absorbed: FloatArray = np.maximum(light - image, 0) / np.maximum(light, LEAST_LIGHT)
    return absorbed


def _flat_ground(image: UInt8Array) -> int | None:
    """Return the ground of a drawing, which is of two values; None for a photograph."""
    counts = np.bincount(image.ravel(), minlength=PIXEL_MAX + 1)
    ink, ground = (int(value) for value in np.argsort(counts)[-2:])
    is_drawing = counts[ink] + counts[ground] >= 0.9 * image.size
    return ground if is_drawing and abs(ink - ground) > 0.75 * PIXEL_MAX else None


def _uneven_ground(image: UInt8Array) -> FloatArray:
    """Return the light of the ground at each pixel, without strokes."""
    small = _shrink(image, GROUND).astype(np.float32)
    side = int(STROKE * max(small.shape)) | 1
    # Morphological closing. The margin keeps what is dark at the edge: it may be a shadow.
    ground: FloatArray = np.pad(small, side - 1, mode="edge")
    for extreme in (np.max, np.min):
        for axis in (0, 1):
            ground = extreme(sliding_window_view(ground, side, axis=axis), axis=-1)
    height, width = image.shape
    full = Image.fromarray(ground).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(full)


def _strongest(absorbed: FloatArray) -> float:
    """Return the contrast of the ink, if there is any."""
    count = max(5, min(PEAK_PIXELS, absorbed.size // 50))
    return float(np.partition(absorbed.ravel(), -count)[-count:].mean())


def _noise(values: FloatArray, *, apart: int) -> float:
    """Return the standard deviation of noise, from pixels so far apart."""
    pairs = (values[apart:] - values[:-apart], values[:, apart:] - values[:, :-apart])
    # The median difference of two normal values is 0.95 of their deviation.
    return min((float(np.median(np.abs(d))) / 0.95 for d in pairs if d.size), default=0.0)


def _check(contrast: float, noise: float) -> None:
    if contrast < max(MIN_CONTRAST, MIN_SIGNAL * noise):
        raise DataError(
            f"The image is blank: its strongest pixels differ from the rest by "
            f"{contrast * PIXEL_MAX:.0f} of {PIXEL_MAX}, its noise by {noise * PIXEL_MAX:.0f}. "
            "Draw with more contrast."
        )


def _choose(mask: BoolArray) -> BoolArray:
    """Return the largest part and the separate strokes that belong to it."""
    parts = list(_parts(mask))
    if not parts:
        raise DataError("The image is blank but for lines. Leave a margin around what is drawn.")
    main = max(parts, key=lambda part: part.area * EDGE_WEIGHT ** part.edges(mask.shape))
    size = max(main.bottom - main.top, main.right - main.left)
    if size < max(MIN_PIXELS, MIN_SIDE * max(mask.shape)):
        raise DataError("The image is blank but for specks. Draw larger, or come closer.")
    chosen = np.zeros_like(mask)
    for part in parts:
        at_edge = part.edges(mask.shape) > main.edges(mask.shape)
        near = part.distance(main) <= MAX_GAP * size
        if part is main or (near and part.area >= MIN_PART * main.area and not at_edge):
            for row, begin, end in part.runs:
                chosen[row, begin:end] = True
    return chosen


def _parts(mask: BoolArray) -> Iterator[Part]:
    """Yield the connected parts, also those connected by corners."""
    runs: list[tuple[int, int, int]] = []
    parent: list[int] = []

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    above: list[int] = []
    for row, pixels in enumerate(np.pad(mask, ((0, 0), (1, 1)))):
        edges = np.flatnonzero(pixels[1:] != pixels[:-1]).tolist()
        current = list(range(len(runs), len(runs) + len(edges) // 2))
        for run, begin, end in zip(current, edges[::2], edges[1::2], strict=True):
            runs.append((row, begin, end))
            parent.append(run)
            for other in above:
                if runs[other][1] <= end and begin <= runs[other][2]:
                    parent[root(other)] = root(run)
        above = current
    members: dict[int, list[tuple[int, int, int]]] = {}
    for run, place in enumerate(runs):
        members.setdefault(root(run), []).append(place)
    for own in members.values():
        rows, begins, ends = zip(*own, strict=True)
        area = sum(ends) - sum(begins)
        yield Part(own, area, min(rows), max(rows) + 1, min(begins), max(ends))
