"""From an image to the pixels of a dataset: one way for preprocessing, scoring and the server."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.contract import PIXEL_MAX, ImageSpec, Preparation
from pipeline.errors import DataError
from pipeline.images.decode import decode_grayscale
from pipeline.images.normalize import normalize


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
    image = decode_grayscale(content, colour=preparation.grey)
    if preparation.invert == "auto" and preparation.fit != "mass" and _has_light_border(image):
        return _fit(PIXEL_MAX - image, preparation, shape)._replace(inverted=True)
    return _prepare(image, preparation, shape)


def prepare_arrays(
    images: UInt8Array, preparation: Preparation, shape: tuple[int, int]
) -> UInt8Array:
    """Return uint8 (N, height, width) from arrays of pixels; they are never inverted by `auto`.

    Raise DataError if they are of another size and `preparation` does not fit them.
    """
    if images.shape[1:] == shape:
        return PIXEL_MAX - images if preparation.invert == "always" else images
    prepared = np.empty((len(images), *shape), np.uint8)
    for row, image in enumerate(images):
        prepared[row] = _prepare(image, preparation, shape).pixels
    return prepared


def _prepare(
    image: UInt8Array, preparation: Preparation, shape: tuple[int, int] | None
) -> PreparedImage:
    if preparation.invert == "always":
        return _fit(PIXEL_MAX - image, preparation, shape)._replace(inverted=True)
    return _fit(image, preparation, shape)


def _fit(
    image: UInt8Array, preparation: Preparation, shape: tuple[int, int] | None
) -> PreparedImage:
    """Bring an image to this size as `preparation.fit` says."""
    if preparation.fit == "mass" and shape is not None:
        pixels, inverted, fitted = normalize(image, ImageSpec(*shape, ()))
        if inverted and preparation.invert != "auto":
            return PreparedImage(PIXEL_MAX - pixels, False, fitted)
        return PreparedImage(pixels, inverted, fitted)
    if shape is None or image.shape == shape:
        return PreparedImage(image)
    if preparation.fit == "none":
        raise DataError(
            f"The image is {image.shape[0]} x {image.shape[1]}, but {shape[0]} x {shape[1]} is "
            "expected. Resize it, or build the dataset with --data.size and --data.fit."
        )
    fit = _stretch if preparation.fit == "stretch" else _pad
    return PreparedImage(fit(image, shape), fitted=True)


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


def _has_light_border(image: UInt8Array) -> bool:
    return _background(image) > PIXEL_MAX // 2


def _background(image: UInt8Array) -> int:
    """Return the median of the border."""
    return int(np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])))
