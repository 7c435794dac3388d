"""From arrays of numbers in any common order of axes to grayscale images."""

from __future__ import annotations

from math import isqrt, prod
from typing import Any

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.contract import PIXEL_MAX, Preparation
from pipeline.errors import DataError
from pipeline.images.decode import require_grey
from pipeline.images.prepare import prepare_arrays

LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in grey, of 65,536: those of Pillow's mode L."""


def image_axes(
    shape: tuple[int, ...],
    name: str,
    expected: tuple[int, int] | None = None,
    hint: tuple[int, int] | None = None,
) -> tuple[int, int, int]:
    """Return height, width and channels (1 or 3) of an image of this shape; see `to_images`.

    A flat image has the `expected` height and width; otherwise those of the `hint`, if it has so
    many pixels, or is a square. Raise DataError for other shapes.
    """
    match shape:
        case (pixels,):
            if expected is None and hint and prod(hint) == pixels:
                expected = hint
            side = isqrt(pixels)
            if expected is None and side * side == pixels:
                expected = side, side
            if expected is None or prod(expected) != pixels:
                given = expected or hint
                size = f"{given[0]} x {given[1]}" if given else "a square"
                raise DataError(
                    f"{name}: images have {pixels} pixels, which is not {size}. Give their size "
                    "with --data.size, or as `height` and `width` in the metadata of the schema."
                )
            return *expected, 1
        case (height, width):
            return height, width, 1
        case (1, height, width):
            return height, width, 1
        case (height, width, 1 | 3 as channels):
            return height, width, channels
        case (3, height, width):
            return height, width, 3
    raise DataError(
        f"{name}: an image has the shape {shape}, but it is height x width, with 1 or 3 channels "
        "before or after, or none."
    )


def to_images(
    values: np.ndarray[tuple[int, ...], np.dtype[Any]],
    axes: tuple[int, int, int],
    preparation: Preparation,
    reasons: dict[int, str],
) -> UInt8Array:
    """Return grayscale images, uint8 (N, height, width), from numbers (N, ...) of these axes.

    Add the positions of rows that are not pixels, or in colour where that is refused, to `reasons`.
    """
    height, width, channels = axes
    pixels = _to_uint8(values, reasons)
    if channels == 1:
        return pixels.reshape(-1, height, width)
    if pixels.shape[1] == channels and pixels.shape[-1] != channels:
        pixels = np.moveaxis(pixels, 1, -1)
    if not preparation.grey:
        for row, image in enumerate(pixels):
            try:
                require_grey(image)
            except DataError as error:
                reasons.setdefault(row, str(error))
    grey = (pixels.astype(np.uint32) @ np.array(LUMA, np.uint32) + (1 << 15)) >> 16
    return grey.astype(np.uint8)


def prepare_rows(
    images: UInt8Array,
    preparation: Preparation,
    shape: tuple[int, int],
    reasons: dict[int, str],
) -> UInt8Array:
    """Return images of this shape; add the positions of rows that cannot be fitted to `reasons`."""
    try:
        return prepare_arrays(images, preparation, shape)
    except DataError:
        prepared = np.zeros((len(images), *shape), np.uint8)
    for row in range(len(images)):
        try:
            prepared[row] = prepare_arrays(images[row : row + 1], preparation, shape)[0]
        except DataError as error:
            reasons.setdefault(row, str(error))
    return prepared


def _to_uint8(
    values: np.ndarray[tuple[int, ...], np.dtype[Any]], reasons: dict[int, str]
) -> UInt8Array:
    if values.dtype == np.uint8:
        return values
    flat = values.reshape(len(values), -1)
    valid = ((flat >= 0) & (flat <= PIXEL_MAX) & (flat == np.floor(flat))).all(axis=1)
    for row in np.flatnonzero(~valid):
        reasons.setdefault(int(row), f"a pixel is not an integer from 0 to {PIXEL_MAX}")
    return np.where(valid.reshape(-1, *[1] * (values.ndim - 1)), values, 0).astype(np.uint8)
