"""A contact sheet: the first images of each class, a row a class."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from pipeline.contract import ImageSpec
from pipeline.data.shards import LabeledImages

COLUMNS = 16

GAP = 2


def contact_sheet(split: LabeledImages, image: ImageSpec) -> bytes:
    """A PNG of the first images of each class in these rows, in order of the labels."""
    height, width = image.height + GAP, image.width + GAP
    page = np.full((image.num_classes * height + GAP, COLUMNS * width + GAP), 64, np.uint8)
    for label in range(image.num_classes):
        for column, at in enumerate(np.flatnonzero(split.labels == label)[:COLUMNS]):
            top, left = GAP + label * height, GAP + column * width
            page[top : top + image.height, left : left + image.width] = split.images[at]
    file = BytesIO()
    Image.fromarray(page).save(file, "PNG", optimize=True)
    return file.getvalue()
