"""A grey picture of any size -> the model's, as the digits of MNIST were made.

LeCun et al. 1998, III.A: white ink on black, scaled to a box of 20 of the 28 pixels with its aspect
kept, and laid so that the centre of its mass is the centre of the image.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.contract import PIXEL_MAX, ImageSpec
from pipeline.errors import DataError

BOX = 20 / 28

INK = 64
"""A pixel that bright, of 255, is ink, where a picture is cropped."""

MIN_CONTRAST = 32


def normalize(picture: UInt8Array, image: ImageSpec) -> tuple[UInt8Array, bool, bool]:
    """The picture for the model, uint8 (height, width); whether it was inverted, and fitted.

    A light ground is inverted. A picture of the model's size is else taken as it is; another is
    cropped, scaled and centred. DataError where that finds nothing drawn on it.
    """
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    ground = int(np.median(edge))
    inverted = ground > PIXEL_MAX // 2
    if inverted:
        picture, ground = PIXEL_MAX - picture, PIXEL_MAX - ground
    if picture.shape == image.shape:
        return picture, inverted, False
    ink = np.maximum(picture, ground) - np.uint8(ground)
    contrast = int(ink.max())
    if contrast < MIN_CONTRAST:
        raise DataError(
            f"The image is blank: its pixels differ by {contrast} of {PIXEL_MAX}. "
            "Draw with more contrast."
        )
    ink = (ink.astype(np.float32) * (PIXEL_MAX / contrast)).astype(np.uint8)
    rows, columns = (np.flatnonzero((ink >= INK).any(axis)) for axis in (1, 0))
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return _centre(_scale(cropped, image), image), inverted, True


def _scale(ink: UInt8Array, image: ImageSpec) -> UInt8Array:
    """The ink, as large as fits the box."""
    height, width = ink.shape
    scale = min(image.height * BOX / height, image.width * BOX / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BILINEAR))


def _centre(ink: UInt8Array, image: ImageSpec) -> UInt8Array:
    """The ink on a black image, the centre of its mass as near to the image's as the edges let."""
    at = []
    for axis, room in enumerate(image.shape):
        mass = ink.sum(1 - axis, dtype=np.float64)
        centre = mass @ (np.arange(len(mass)) + 0.5) / max(1, mass.sum())
        at.append(min(max(0, round(room / 2 - centre)), room - len(mass)))
    centred = np.zeros(image.shape, np.uint8)
    centred[at[0] : at[0] + ink.shape[0], at[1] : at[1] + ink.shape[1]] = ink
    return centred
