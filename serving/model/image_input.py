"""PNG, JPEG or raw pixels -> the picture that the model is shown. Knows nothing of HTTP."""

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
    """What the model is shown, uint8 (height, width), and what was done to make it so."""

    pixels: UInt8Array
    inverted: bool = False
    fitted: bool = False


def read_image(data: bytes, image: ImageSpec) -> ModelInput:
    """A PNG or JPEG of any size up to a bound, or the model's raw pixels themselves.

    Raises UnsupportedMedia for other formats, ImageInvalid for a picture that is broken, too large,
    or blank.
    """
    if not data:
        raise RequestInvalid("The body is empty. Send a PNG, as by curl --data-binary @digit.png.")
    if is_png_or_jpeg(data):
        try:
            return ModelInput(*normalize(decode_grayscale(data), image))
        except DataError as error:
            raise ImageInvalid(str(error)) from None
    if len(data) == image.num_pixels:
        return ModelInput(np.frombuffer(data, np.uint8).reshape(image.shape))
    raise UnsupportedMedia(
        "The body is no PNG and no JPEG. Send the bytes of such a file themselves, as by curl "
        f"--data-binary @digit.png, or the {image.num_pixels} raw pixels of one image."
    )
