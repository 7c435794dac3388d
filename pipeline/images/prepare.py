"""From an image to the pixels of a dataset: one way for preprocessing, scoring and the server."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.contract import PIXEL_MAX, Preparation
from pipeline.errors import DataError
from pipeline.images.decode import decode_grayscale
from pipeline.images.ink import FRAME, find_ink, has_dark_ink, require_ink
from pipeline.images.normalize import centre_ink


class PreparedImage(NamedTuple):
    """The pixels, uint8 (height, width), and whether they were inverted and fitted."""

    pixels: UInt8Array
    inverted: bool = False
    fitted: bool = False


def prepare_file(
    content: bytes, preparation: Preparation, shape: tuple[int, int] | None = None
) -> PreparedImage:
    """Return the pixels of a PNG or JPEG; without a `shape`, in the file's own size.

    Raise DataError if the file is damaged, of another size or in colour where `preparation` allows
    neither, or, for `mass`, if it is blank.
    """
    if preparation.fit == "mass" and shape is not None:
        # One pixel more than the model's size, so that no larger file is taken to have it.
        enough = max(FRAME, shape[0] + 1, shape[1] + 1)
        image = decode_grayscale(content, colour=preparation.grey, enough=enough)
        return _fit_ink(image, preparation, shape)
    image = decode_grayscale(content, colour=preparation.grey)
    inverted = preparation.invert == "always" or (
        preparation.invert == "auto" and _background(image) > PIXEL_MAX // 2
    )
    pixels = _fit(PIXEL_MAX - image if inverted else image, preparation, shape)
    return PreparedImage(pixels, inverted, fitted=pixels.shape != image.shape)


def prepare_arrays(
    images: UInt8Array, preparation: Preparation, shape: tuple[int, int]
) -> UInt8Array:
    """Return uint8 (N, height, width) from arrays of pixels; `auto` does not invert them.

    Raise DataError if they are of another size and `preparation` does not fit them, or, for `mass`,
    if one of another size is blank.
    """
    if preparation.invert == "always":
        images = PIXEL_MAX - images
    if images.shape[1:] == shape:
        return images
    as_is = replace(preparation, invert="never")
    prepared = np.empty((len(images), *shape), np.uint8)
    for row, image in enumerate(images):
        if preparation.fit == "mass":
            prepared[row] = _fit_ink(image, as_is, shape).pixels
        else:
            prepared[row] = _fit(image, preparation, shape)
    return prepared


def _fit_ink(image: UInt8Array, preparation: Preparation, shape: tuple[int, int]) -> PreparedImage:
    """Centre the ink of an image of another size. `auto` makes it light on dark."""
    fitted = image.shape != shape
    if fitted:
        dark = has_dark_ink(image)
        pixels = centre_ink(find_ink(image if dark else PIXEL_MAX - image), shape)
    else:
        ground = _background(image)
        require_ink(image, ground)
        dark = ground > PIXEL_MAX // 2
        pixels = PIXEL_MAX - image if dark else image
    inverted = preparation.invert == "always" or (preparation.invert == "auto" and dark)
    return PreparedImage(pixels if dark == inverted else PIXEL_MAX - pixels, inverted, fitted)


def _fit(image: UInt8Array, preparation: Preparation, shape: tuple[int, int] | None) -> UInt8Array:
    """Bring an image to this size, if any, as `preparation.fit` says."""
    if shape is None or image.shape == shape:
        return image
    if preparation.fit == "none":
        raise DataError(
            f"The image is {image.shape[0]} x {image.shape[1]}, but {shape[0]} x {shape[1]} is "
            "expected. Resize it, or build the dataset with --data.size and --data.fit."
        )
    return _stretch(image, shape) if preparation.fit == "stretch" else _pad(image, shape)


def _stretch(image: UInt8Array, shape: tuple[int, int]) -> UInt8Array:
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _pad(image: UInt8Array, shape: tuple[int, int]) -> UInt8Array:
    """Scale an image to fit, and centre it on its own background."""
    height, width = image.shape
    scale = min(shape[0] / height, shape[1] / width)
    inner = _stretch(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    padded = np.full(shape, _background(image), np.uint8)
    top, left = (shape[0] - inner.shape[0]) // 2, (shape[1] - inner.shape[1]) // 2
    padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return padded


def _background(image: UInt8Array) -> int:
    """Return the median of the border."""
    return int(np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])))
