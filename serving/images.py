"""PNG, JPEG or raw pixels -> the picture that the model is shown. Knows nothing of HTTP."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.contract import DataError, ImageSpec
from pipeline.pictures import grey, is_picture
from serving.errors import ImageInvalid, RequestInvalid, UnsupportedMedia
from serving.fitting import fit
from serving.protocol import Images


class Shown(NamedTuple):
    """What the model is shown, uint8 (height, width), and what was done to make it so."""

    pixels: Images
    inverted: bool = False
    fitted: bool = False


def read(data: bytes, image: ImageSpec) -> Shown:
    """A PNG or JPEG of any size up to a bound, or the model's raw pixels themselves.

    Raises UnsupportedMedia for other formats, ImageInvalid for a picture that is broken, too large,
    or blank.
    """
    if not data:
        raise RequestInvalid("The body is empty. Send a PNG, as by curl --data-binary @digit.png.")
    if is_picture(data):
        try:
            return Shown(*fit(grey(data), image))
        except DataError as error:
            raise ImageInvalid(str(error)) from None
    if len(data) == image.num_pixels:
        return Shown(np.frombuffer(data, np.uint8).reshape(image.shape))
    raise UnsupportedMedia(
        "The body is no PNG and no JPEG. Send the bytes of such a file themselves, as by curl "
        f"--data-binary @digit.png, or the {image.num_pixels} raw pixels of one image."
    )
