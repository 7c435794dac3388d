"""The model's input from an image file (PNG or JPEG) or raw pixels. Knows nothing of HTTP."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.contract import ImageSpec
from pipeline.errors import DataError
from pipeline.images.decode import decode_grayscale, is_png_or_jpeg
from pipeline.images.normalize import normalize
from serving.errors import ImageInvalid, RequestInvalid, UnsupportedMedia


class ModelInput(NamedTuple):
    """The image that the model gets, uint8 (height, width), and how it was changed."""

    pixels: UInt8Array
    inverted: bool = False
    fitted: bool = False


def read_image(body: bytes, image: ImageSpec) -> ModelInput:
    """Return the model's input for an image file of any bounded size, or for the raw pixels.

    Raise RequestInvalid if the body is empty, UnsupportedMedia for other formats, and ImageInvalid
    if the image is damaged, too large, or blank.
    """
    if not body:
        raise RequestInvalid(
            "The body is empty. Send an image file, for example with curl --data-binary @digit.png."
        )
    if is_png_or_jpeg(body):
        try:
            return ModelInput(*normalize(decode_grayscale(body), image))
        except DataError as error:
            raise ImageInvalid(str(error)) from None
    if len(body) == image.num_pixels:
        return ModelInput(np.frombuffer(body, np.uint8).reshape(image.shape))
    raise UnsupportedMedia(
        "The body is neither a PNG nor a JPEG. Send the bytes of an image file, for example with "
        f"curl --data-binary @digit.png, or the {image.num_pixels} raw pixels of one image."
    )
