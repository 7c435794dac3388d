"""Valid HTTP requests that no client should send, each with the exact status of its answer.

Requests that break HTTP itself are in tests/e2e/test_edge.py. Choices of status:

- JSON that does not fit the model is 400, not 422, and an unknown image format is 415, as Triton's
  and KServe's servers answer.
- JSON is read with any Content-Type, as Triton's clients send none.
- A gzip body is decompressed, up to the bound of a body, as the protocol says.
- The answer is JSON even if Accept names only other types.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.support.stripes_model import STRIPES, stripe

V1, V2, PREDICT = "/v1/models/stripes:predict", "/v2/models/stripes/infer", "/predict"

PIXELS = [0] * STRIPES.num_pixels


def v1(body: bytes, **headers: str) -> httpx.Request:
    return request("POST", V1, body, {"Content-Type": "application/json"} | headers)


def v2(**tensor: Any) -> httpx.Request:
    image = {"name": "image", "shape": [1, *STRIPES.shape], "datatype": "UINT8", "data": PIXELS}
    return request("POST", V2, json.dumps({"inputs": [image | tensor]}).encode(), {})


def pixel_values(*pixels: str) -> httpx.Request:
    """Return a V1 request of one image: these values as JSON, then zeros."""
    data = ",".join([*pixels, *["0"] * (STRIPES.num_pixels - len(pixels))])
    return v1(b'{"instances": [[%s]]}' % data.encode())


def binary(body: bytes, header: object = 0) -> httpx.Request:
    return request("POST", V2, body, {"Inference-Header-Content-Length": str(header)})


def image_file(body: bytes) -> httpx.Request:
    return request("POST", PREDICT, body, {})


def form(body: bytes, boundary: str = "; boundary=x") -> httpx.Request:
    return request("POST", PREDICT, body, {"Content-Type": f"multipart/form-data{boundary}"})


def get(path: str, method: str = "GET") -> httpx.Request:
    return request(method, path, b"", {})


def request(method: str, path: str, body: bytes, headers: dict[str, str]) -> httpx.Request:
    return httpx.Request(method, f"http://server{path}", content=body, headers=headers)


def png(mode: str = "L", size: tuple[int, int] = (6, 4), **options: Any) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(stripe(0)).resize(size).convert(mode)
    image.save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def png_of_16_bits() -> bytes:
    file = io.BytesIO()
    # Pillow's own conversion keeps the values, which would be nearly black.
    Image.fromarray(stripe(0).astype(np.uint16) << 8).save(file, "PNG")
    return file.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png_of_size(
    width: int, height: int, *extra: bytes, depth: int = 8, crc: int | None = None
) -> bytes:
    """Return a PNG whose header says this size; its data are of 6 by 4, after `extra` chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in stripe(0))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows), crc) + chunk(b"IEND", b"")


def form_file(data: bytes, name: str = "x.png") -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="a"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.py", "print()")
    return file.getvalue()


GOOD = b'{"instances": [%s]}' % json.dumps(PIXELS).encode()

PNG = png()

BOMB = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 << 20), 9))

NAMES = ("..", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f", "a%00b", "a" * 300, "", "%F0%9F%98%80")

BAD_PIXELS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "1e308", "-1", "256", "0.5"),
    *('"1"', "true", "null", "{}"),
)

BAD_LENGTHS = ("99999999999", "-1", "abc", "1e3")

OTHER_FORMATS = ("GIF", "TIFF", "BMP", "WEBP")

REQUESTS: dict[str, tuple[httpx.Request, int]] = {
    # JSON
    "empty JSON body": (v1(b""), 400),
    "truncated JSON": (v1(b"{"), 400),
    "trailing comma": (v1(b'{"instances": [],}'), 400),
    "two JSON documents": (v1(GOOD + b"{}"), 400),
    "invalid UTF-8": (v1(b'{"instances": ["\xff"]}'), 400),
    "byte order mark": (v1(b"\xef\xbb\xbf" + GOOD), 200),
    "JSON in UTF-16": (v1(GOOD.decode().encode("utf-16")), 400),
    "lone surrogate": (v1(b'{"instances": ["\\ud800"]}'), 400),
    "nesting of 100,000 levels": (v1(b"[" * 100_000), 400),
    "nesting of 900 levels": (v1(b"[" * 900 + b"]" * 900), 400),
    "duplicate key": (v1(b'{"instances": [], "instances": []}'), 400),
    "60,000 keys": (v1(json.dumps({f"{k}": k for k in range(60_000)}).encode()), 400),
    **{f"top level {top}": (v1(top.encode()), 400) for top in ("[]", "null", "1", '"x"')},
    # Pixels in JSON
    **{f"pixel {value}": (pixel_values(value), 400) for value in BAD_PIXELS},
    "pixel of 5,000 digits": (pixel_values("1" * 5000), 400),
    "pixel of 1,000 digits": (pixel_values("1" * 1000), 400),
    "missing instances": (v1(b"{}"), 400),
    "unknown field": (v2(extra=1), 200),
    "zero images": (v1(b'{"instances": []}'), 400),
    "zero images in V2": (v2(shape=[0, *STRIPES.shape], data=[]), 400),
    "missing pixel": (v1(b'{"instances": [%s]}' % json.dumps(PIXELS[1:]).encode()), 400),
    "extra pixel": (v1(b'{"instances": [%s]}' % json.dumps([0, *PIXELS]).encode()), 400),
    "image of 3 by 6": (v2(shape=[1, 3, 6], data=PIXELS[:18]), 400),
    "image of 4 by 7": (v2(shape=[1, 4, 7], data=[*PIXELS, 0, 0, 0, 0]), 400),
    "ragged image": (v2(data=[[[0] * 6, [0] * 5, [0] * 7, [0] * 6]]), 400),
    # Rows, shapes and binary tensors; the server takes 16 rows
    "too many binary rows": (binary(bytes(17 * STRIPES.num_pixels)), 413),
    "too many rows in V2": (v2(shape=[17, *STRIPES.shape], data=PIXELS * 17), 413),
    "too many rows in V1": (v1(json.dumps({"instances": [PIXELS] * 17}).encode()), 413),
    "incomplete binary image": (binary(bytes(25)), 400),
    "empty binary tensor": (binary(b""), 400),
    "datatype FP32": (v2(datatype="FP32", data=[0.5] * STRIPES.num_pixels), 400),
    "datatype O": (v2(datatype="O"), 400),
    "shape of 2^32 by 2^32": (v2(shape=[2**32, 2**32], parameters={"binary_data_size": 1}), 400),
    "2^32 rows": (v2(shape=[2**32, *STRIPES.shape]), 413),
    "-1 rows": (v2(shape=[-1, *STRIPES.shape]), 400),
    **{f"JSON length {size}": (binary(GOOD, size), 400) for size in BAD_LENGTHS},
    # Headers
    "no content type": (request("POST", V1, GOOD, {}), 200),
    "content type not ASCII": (
        httpx.Request(
            "POST", f"http://server{V1}", content=GOOD, headers=[(b"Content-Type", b"\xff")]
        ),
        200,
    ),
    "JSON as text/plain": (v1(GOOD, **{"Content-Type": "text/plain"}), 200),
    "PNG as JSON": (v1(PNG), 400),
    "PNG to a JSON route": (v1(PNG, **{"Content-Type": "image/png"}), 400),
    "gzip body": (v1(gzip.compress(GOOD), **{"Content-Encoding": "gzip"}), 200),
    "gzip bomb": (v1(gzip.compress(bytes(64 << 20)), **{"Content-Encoding": "gzip"}), 413),
    "plain body as gzip": (v1(GOOD, **{"Content-Encoding": "gzip"}), 400),
    "brotli body": (v1(GOOD, **{"Content-Encoding": "br"}), 415),
    "accepts only XML": (v1(GOOD, Accept="application/xml"), 200),
    # Routes
    **{f"method {method}": (get(PREDICT, method), 405) for method in ("GET", "PUT", "DELETE")},
    "unknown route": (get("/v3"), 404),
    "unknown model": (get("/v2/models/other"), 404),
    "unknown version": (get("/v2/models/stripes/versions/0"), 404),
    **{f"model name {name[:30]!r}": (get(f"/v2/models/{name}/ready"), 404) for name in NAMES},
    # Image files
    "empty image": (image_file(b""), 400),
    "PNG signature only": (image_file(PNG[:8]), 422),
    "PNG truncated in its header": (image_file(PNG[:20]), 422),
    "PNG truncated in its pixels": (image_file(PNG[:-20]), 422),
    "PNG without IEND": (image_file(PNG[:-12]), 422),
    "PNG with a wrong checksum": (image_file(png_of_size(6, 4, crc=1)), 422),
    **{f"PNG of {n} by {n}": (image_file(png_of_size(n, n)), 422) for n in (0, 65535, 2**31 - 1)},
    "PNG with a text bomb": (image_file(png_of_size(6, 4, BOMB)), 422),
    "PNG of 16 bits": (image_file(png_of_16_bits()), 200),
    "PNG with a palette": (image_file(png("P")), 200),
    "PNG with alpha": (image_file(png("LA")), 200),
    "animated PNG": (
        image_file(png(save_all=True, append_images=[Image.fromarray(stripe(1))])),
        200,
    ),
    **{f"{kind} image": (image_file(png(format=kind)), 415) for kind in OTHER_FORMATS},
    "SVG image": (image_file(b"<svg/>"), 415),
    "PDF file": (image_file(b"%PDF-1.4"), 415),
    "PNG that is also a zip": (image_file(PNG + zipped()), 200),
    # Forms
    "form without a boundary": (form(form_file(PNG) + b"--x--\r\n", ""), 400),
    "form with a wrong boundary": (form(form_file(PNG) + b"--x--\r\n", "; boundary=y"), 400),
    "form of 10,000 files": (form(form_file(b"") * 10_000 + b"--x--\r\n"), 400),
    "form with a long preamble": (
        form(bytes(1_000_000) + b"\r\n" + form_file(PNG) + b"--x--\r\n"),
        400,
    ),
    "form without files": (form(b"--x--\r\n"), 400),
    "form of two files": (form(form_file(PNG) * 2 + b"--x--\r\n"), 200),
    "file name with a path": (form(form_file(PNG, "../../x") + b"--x--\r\n"), 200),
}
"""Each request and the status of its answer. To add one: name it by what is wrong with it."""


def address_to(request: httpx.Request, server: str) -> httpx.Request:
    """Point the request to the server at this URL, and return it."""
    address = httpx.URL(server)
    request.url = request.url.copy_with(host=address.host, port=address.port)
    request.headers["host"] = address.netloc.decode()
    return request
