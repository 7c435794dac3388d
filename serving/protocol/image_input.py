"""The model's input from an image file (PNG or JPEG) or raw pixels. Knows nothing of HTTP."""

from __future__ import annotations

import numpy as np

from pipeline.contract import ImageSpec
from pipeline.errors import DataError
from pipeline.images.decode import is_png_or_jpeg
from pipeline.images.prepare import PreparedImage, prepare_arrays, prepare_file
from serving.errors import ImageInvalid, RequestInvalid, UnsupportedMedia


def read_image(body: bytes, image: ImageSpec) -> PreparedImage:
    """Return the model's input for an image file or for raw pixels, prepared as its dataset was.

    Raise RequestInvalid if the body is empty, UnsupportedMedia for other formats, and ImageInvalid
    if the image is damaged, too large, blank, or of a size or colour that the dataset refuses.
    """
    if not body:
        raise RequestInvalid(
            "The body is empty. Send an image file, for example with curl --data-binary @digit.png."
        )
    if is_png_or_jpeg(body):
        try:
            return prepare_file(body, image.preparation, image.shape)
        except DataError as error:
            raise ImageInvalid(str(error)) from None
    if len(body) == image.num_pixels:
        raw = np.frombuffer(body, np.uint8).reshape(1, *image.shape)
        return PreparedImage(prepare_arrays(raw, image.preparation, image.shape)[0])
    raise UnsupportedMedia(
        "The body is neither a PNG nor a JPEG. Send the bytes of an image file, for example with "
        f"curl --data-binary @digit.png, or the {image.num_pixels} raw pixels of one image."
    )
