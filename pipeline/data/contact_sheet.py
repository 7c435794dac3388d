"""A contact sheet of a dataset: the first images of each class, one row per class."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from pipeline.contract import ImageSpec
from pipeline.data.shards import LabeledImages

COLUMNS = 16

GAP = 2
"""Pixels between images."""

BACKGROUND = 64
"""Dark grey: the edges of black and of white images are visible."""


def contact_sheet(rows: LabeledImages, image: ImageSpec) -> bytes:
    """Return a PNG of the first images of each class in these rows, in order of labels."""
    height = image.height + GAP
    width = image.width + GAP
    size = (image.num_classes * height + GAP, COLUMNS * width + GAP)
    page = np.full(size, BACKGROUND, np.uint8)
    for label in range(image.num_classes):
        for column, row in enumerate(np.flatnonzero(rows.labels == label)[:COLUMNS]):
            top = GAP + label * height
            left = GAP + column * width
            page[top : top + image.height, left : left + image.width] = rows.images[row]
    file = BytesIO()
    Image.fromarray(page).save(file, "PNG", optimize=True)
    return file.getvalue()
