"""Make a grayscale image of any size into the model's, as the digits of MNIST were made.

LeCun et al. 1998, III.A: white ink on black, scaled to a box of 20 of the 28 pixels with its aspect
ratio kept, and placed so that the centre of mass is the centre of the image.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.contract import PIXEL_MAX, ImageSpec
from pipeline.errors import DataError

BOX = 20 / 28
"""Side of the box that holds the ink, as a share of the image's side."""

INK = 64
"""Brightness, of 255, from which a pixel counts as ink when an image is cropped."""

MIN_CONTRAST = 32
"""Difference of brightness, of 255, below which an image counts as blank."""


def normalize(image: UInt8Array, spec: ImageSpec) -> tuple[UInt8Array, bool, bool]:
    """Return the model's input, uint8 (height, width), and whether it was inverted and fitted.

    An image with a light background is inverted. If it then has the model's size it is returned as
    it is; otherwise it is cropped, scaled and centred. Raise DataError if it is blank.
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    background = int(np.median(border))
    inverted = background > PIXEL_MAX // 2
    if inverted:
        image, background = PIXEL_MAX - image, PIXEL_MAX - background
    if image.shape == spec.shape:
        return image, inverted, False
    ink = np.maximum(image, background) - np.uint8(background)
    contrast = int(ink.max())
    if contrast < MIN_CONTRAST:
        raise DataError(
            f"The image is blank: its pixels differ by {contrast} of {PIXEL_MAX}. "
            "Draw with more contrast."
        )
    ink = (ink.astype(np.float32) * (PIXEL_MAX / contrast)).astype(np.uint8)
    rows, columns = (np.flatnonzero((ink >= INK).any(axis)) for axis in (1, 0))
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _centre(_scale(cropped, spec), spec), inverted, True


def _scale(ink: UInt8Array, spec: ImageSpec) -> UInt8Array:
    """Scale the ink to fill the box."""
    height, width = ink.shape
    scale = min(spec.height * BOX / height, spec.width * BOX / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BILINEAR))


def _centre(ink: UInt8Array, spec: ImageSpec) -> UInt8Array:
    """Place the ink on a black image, with its centre of mass as near to the middle as fits."""
    corner = []
    for axis, side in enumerate(spec.shape):
        mass = ink.sum(1 - axis, dtype=np.float64)
        centre = mass @ (np.arange(len(mass)) + 0.5) / max(1, mass.sum())
        corner.append(min(max(0, round(side / 2 - centre)), side - len(mass)))
    top, left = corner
    centred = np.zeros(spec.shape, np.uint8)
    centred[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return centred
