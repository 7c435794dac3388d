"""What schemathesis cannot make of itself: pictures, for the media types of /predict."""

import io
import random

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def picture(seed: int, size: tuple[int, int], kind: str) -> bytes:
    """Random grey pixels, which are neither blank nor alike."""
    pixels = random.Random(seed).randbytes(size[0] * size[1])
    file = io.BytesIO()
    Image.frombytes("L", size, pixels).save(file, kind)
    return file.getvalue()


sizes = st.tuples(st.integers(8, 64), st.integers(8, 64))
for kind in ("png", "jpeg"):
    pictures = st.builds(picture, st.integers(0, 1 << 32), sizes, st.just(kind.upper()))
    schemathesis.openapi.media_type(f"image/{kind}", pictures)
