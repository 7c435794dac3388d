"""Generate image files for schemathesis, which cannot do so itself: the bodies of /predict."""

import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def image_file(size: tuple[int, int], ground: int, ink: int, kind: str) -> bytes:
    """Return an image file of a bar, which is never blank."""
    width, height = size
    image = Image.new("L", size, ground)
    thickness = max(2, max(size) // 8)
    left = (width - thickness) // 2
    image.paste(ink, (left, height // 5, left + thickness, height - height // 5))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


sizes = st.tuples(st.integers(16, 64), st.integers(16, 64))
light, dark = st.integers(160, 255), st.integers(0, 80)
for kind in ("png", "jpeg"):
    image_files = st.one_of(
        st.builds(image_file, sizes, light, dark, st.just(kind)),
        st.builds(image_file, sizes, dark, light, st.just(kind)),
    )
    schemathesis.openapi.media_type(f"image/{kind}", image_files)
