"""The model's input from image files (PNG or JPEG) or raw pixels. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.contract import ImageSpec
from pipeline.errors import DataError
from pipeline.images.decode import PNG, image_size, is_png_or_jpeg
from pipeline.images.prepare import PreparedImage, prepare_arrays, prepare_file
from serving.errors import ImageInvalid, PayloadTooLarge, RequestInvalid, UnsupportedMedia

QUICK_BYTES = 8192
"""Size of an image file whose chunks and texts are quickly read."""

QUICK_PIXELS = 128 * 128


def is_quick(body: bytes) -> bool:
    """Return whether the body is decoded in about a millisecond."""
    if not is_png_or_jpeg(body):
        return True
    if len(body) > QUICK_BYTES or not body.startswith(PNG):
        return False
    try:
        width, height = image_size(body)
    except DataError:
        return True
    return width * height <= QUICK_PIXELS


def read_images(bodies: Sequence[bytes], image: ImageSpec, max_pixels: int) -> list[PreparedImage]:
    """Return the model's inputs for image files or raw pixels.

    Raise PayloadTooLarge, before any is decoded, if they have more than `max_pixels` in all, and
    the errors of `read_image`.
    """
    try:
        sizes = [image_size(body) for body in bodies if is_png_or_jpeg(body)]
    except DataError as error:
        raise ImageInvalid(str(error)) from None
    if (pixels := sum(width * height for width, height in sizes)) > max_pixels:
        raise PayloadTooLarge(
            f"The images have {pixels:,} pixels in all, but at most {max_pixels:,} are allowed. "
            "Send them in several requests, or scale them first."
        )
    return [read_image(body, image) for body in bodies]


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
