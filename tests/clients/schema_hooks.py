"""Generate image files for schemathesis, which cannot do so itself: the bodies of /predict."""

import io
import random

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def image_file(seed: int, size: tuple[int, int], kind: str) -> bytes:
    """Return an image file of random grey pixels, which is never blank."""
    pixels = random.Random(seed).randbytes(size[0] * size[1])
    file = io.BytesIO()
    Image.frombytes("L", size, pixels).save(file, kind)
    return file.getvalue()


sizes = st.tuples(st.integers(8, 64), st.integers(8, 64))
for kind in ("png", "jpeg"):
    image_files = st.builds(image_file, st.integers(0, 1 << 32), sizes, st.just(kind.upper()))
    schemathesis.openapi.media_type(f"image/{kind}", image_files)
