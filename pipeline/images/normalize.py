"""Make ink of any size into a digit like those of MNIST, as these were made.

LeCun et al. 1998, III.A: light ink on black, scaled to a box of 20 of the 28 pixels with its aspect
ratio kept, and placed so that the centre of mass is the centre of the image. Thin strokes are
drawn thicker, and slant beyond that of most hands is taken back.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from pipeline.arrays import UInt8Array
from pipeline.contract import PIXEL_MAX
from pipeline.images.lines import BoolArray

BOX = 20 / 28
"""Side of the box that holds the ink, as a share of the image's side."""

FINE = 140
"""Least pixels of the longer side of the ink while its strokes are drawn."""

MIN_STROKE = 0.08
"""Least width of strokes, as a share of the ink's longer side; thin ones of MNIST have it."""

SOFTNESS = 0.035
"""Deviation of the blur of strokes' edges, as a share of the ink's longer side."""

INK = 32
"""Brightness, of 255, from which a pixel is inside the box."""

SLANTS = (-0.15, -0.05)
"""Columns to the right for each row down: the slants of most of MNIST's digits."""


def centre_ink(mask: BoolArray, shape: tuple[int, int]) -> UInt8Array:
    """Return light ink on black, uint8 of this height and width, from which pixels are ink."""
    ink = _upright(_draw(mask[_box(mask)]))
    return _centre(_scale(ink[_box(ink >= INK)], shape), shape)


def _box(ink: BoolArray) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _draw(mask: BoolArray) -> UInt8Array:
    """Enlarge small ink, make thin strokes thicker, and blur the edges."""
    times = max(1, round(FINE / max(mask.shape)))
    mask = np.kron(mask, np.ones((times, times), bool))
    longer = max(mask.shape)
    thin = max(0, round((MIN_STROKE * longer - _stroke_width(mask)) / 2))
    mask = np.pad(mask, thin + round(4 * SOFTNESS * longer))
    for number in range(thin):
        mask = _grow(mask, corners=number % 2 == 1)
    drawn = Image.fromarray(mask.astype(np.uint8) * PIXEL_MAX)
    return np.asarray(drawn.filter(ImageFilter.GaussianBlur(SOFTNESS * longer)))


def _stroke_width(mask: BoolArray) -> float:
    """Return the mean width of strokes: a line has twice its area for its outline."""
    padded = np.pad(mask, 1)
    steps = sum(int(np.diff(padded, axis=axis).sum()) for axis in (0, 1))
    # The steps of an outline are 4 / pi times as long as it, over all directions.
    return 2 * float(mask.sum()) / (steps * np.pi / 4)


def _grow(mask: BoolArray, *, corners: bool) -> BoolArray:
    """Add the neighbours of all pixels; with and without corners in turn, a disc becomes one."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    source = grown.copy() if corners else mask
    grown[:, 1:] |= source[:, :-1]
    grown[:, :-1] |= source[:, 1:]
    return grown


def _upright(ink: UInt8Array) -> UInt8Array:
    """Take back the slant that is beyond SLANTS.

    A hand may slant, or the photo was taken at an angle. Half is taken back by a turn, and the
    rest by a shear.
    """
    excess = _excess_slant(ink)
    if not excess:
        return ink
    margin = max(ink.shape) // 2
    padded = Image.fromarray(np.pad(ink, margin))
    turned = padded.rotate(-np.degrees(np.arctan(excess)) / 2, Image.Resampling.BILINEAR)
    return _shear(np.asarray(turned))


def _shear(ink: UInt8Array) -> UInt8Array:
    excess = _excess_slant(ink)
    height = len(ink)
    margin = round(abs(excess) * height) + 1
    padded = Image.fromarray(np.pad(ink, ((0, 0), (margin, margin))))
    move = (1, excess, -excess * (height / 2), 0, 1, 0)
    return np.asarray(
        padded.transform(padded.size, Image.Transform.AFFINE, move, Image.Resampling.BILINEAR)
    )


def _excess_slant(ink: UInt8Array) -> float:
    """Return by how much the slant is beyond SLANTS, in columns to the right for each row down."""
    mass = ink.astype(np.float64)
    height, width = ink.shape
    y, x = np.arange(height), np.arange(width)
    rows = mass.sum(1)
    y = y - rows @ y / rows.sum()
    x = x - mass.sum(0) @ x / rows.sum()
    slant = (y @ mass @ x) / max(1.0, rows @ y**2)
    return float(slant - min(max(slant, SLANTS[0]), SLANTS[1]))


def _scale(ink: UInt8Array, shape: tuple[int, int]) -> UInt8Array:
    """Scale the ink to fill the box."""
    height, width = ink.shape
    scale = min(shape[0] * BOX / height, shape[1] * BOX / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BOX))


def _centre(ink: UInt8Array, shape: tuple[int, int]) -> UInt8Array:
    """Place the ink on a black image, with its centre of mass as near to the middle as fits.

    As in MNIST, the middle of 28 pixels is that of the pixel 14, counted from 0.
    """
    corner = []
    for axis, side in enumerate(shape):
        mass = ink.sum(1 - axis, dtype=np.float64)
        centre = mass @ np.arange(len(mass)) / max(1, mass.sum())
        corner.append(min(max(0, round(side // 2 - centre)), side - len(mass)))
    top, left = corner
    centred = np.zeros(shape, np.uint8)
    centred[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return centred
