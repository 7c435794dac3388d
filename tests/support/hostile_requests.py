"""Requests that are whole HTTP but that no client should send: each has its exact status.

The numbers are those of a catalogue of 81 rows; rows 24 to 28 and 55 to 77 are in test_edge, where
bytes are sent, 54, 78 and 80 in test_serving_routes, and 79 in test_serving_following. Its reading
differs from ours in this:

- What is JSON but does not fit the model (8, 13, 15 to 21, 40, 42 to 44) is 400 and not 422, and
  pictures of no known format are 415: so do Triton and KServe's servers, whose clients we serve.
- JSON is read whatever its Content-Type (29 to 33): Triton's clients send none.
- gzip (34) is unpacked, within the bound of a body, as the protocol has it, and not refused.
- Accept of another type (35) is answered in JSON: it is what there is.
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
from PIL import Image

from tests.support.stripes_model import STRIPES, stripe

V1, V2, PREDICT = "/v1/models/stripes:predict", "/v2/models/stripes/infer", "/predict"

PIXELS = [0] * STRIPES.num_pixels


def v1(body: bytes, **headers: str) -> httpx.Request:
    return request("POST", V1, body, {"Content-Type": "application/json"} | headers)


def v2(**tensor: Any) -> httpx.Request:
    image = {"name": "image", "shape": [1, *STRIPES.shape], "datatype": "UINT8", "data": PIXELS}
    return request("POST", V2, json.dumps({"inputs": [image | tensor]}).encode(), {})


def values(*pixels: str) -> httpx.Request:
    """An image of these values, in JSON, and of zeros."""
    data = ",".join([*pixels, *["0"] * (STRIPES.num_pixels - len(pixels))])
    return v1(b'{"instances": [[%s]]}' % data.encode())


def binary(body: bytes, header: object = 0) -> httpx.Request:
    return request("POST", V2, body, {"Inference-Header-Content-Length": str(header)})


def picture(body: bytes) -> httpx.Request:
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


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def drawn(width: int, height: int, *before: bytes, depth: int = 8, crc: int | None = None) -> bytes:
    """A PNG that says it has this size, whatever its data say."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in stripe(0))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + b"".join(before) + chunk(b"IDAT", zlib.compress(rows), crc) + chunk(b"IEND", b"")


def part(data: bytes, name: str = "x.png") -> bytes:
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

REQUESTS: dict[str, tuple[httpx.Request, int]] = {
    "1 empty": (v1(b""), 400),
    "2 truncated": (v1(b"{"), 400),
    "3 a trailing comma": (v1(b'{"instances": [],}'), 400),
    "4 two documents": (v1(GOOD + b"{}"), 400),
    "5 no UTF-8": (v1(b'{"instances": ["\xff"]}'), 400),
    "6 a byte order mark": (v1(b"\xef\xbb\xbf" + GOOD), 400),
    "6 UTF-16": (v1(GOOD.decode().encode("utf-16")), 400),
    "7 NaN": (values("NaN"), 400),
    "7 Infinity": (values("Infinity"), 400),
    "7 -Infinity": (values("-Infinity"), 400),
    "8 1e999": (values("1e999"), 400),
    "9 a lone surrogate": (v1(b'{"instances": ["\\ud800"]}'), 400),
    "10 100,000 deep": (v1(b"[" * 100_000), 400),
    "11 900 deep": (v1(b"[" * 900 + b"]" * 900), 400),
    "12 an integer of 5,000 digits": (values("1" * 5000), 400),
    "13 an integer of 1,000 digits": (values("1" * 1000), 400),
    "14 a key twice": (v1(b'{"instances": [], "instances": []}'), 400),
    **{f"15 {top}": (v1(top.encode()), 400) for top in ("[]", "null", "1", '"x"')},
    "16 no instances": (v1(b"{}"), 400),
    "17 an unknown field": (v2(extra=1), 400),
    "18 no images": (v1(b'{"instances": []}'), 400),
    "18 no images in V2": (v2(shape=[0, *STRIPES.shape], data=[]), 400),
    "19 a pixel less": (v1(b'{"instances": [%s]}' % json.dumps(PIXELS[1:]).encode()), 400),
    "19 a pixel more": (v1(b'{"instances": [%s]}' % json.dumps([0, *PIXELS]).encode()), 400),
    "19 3 by 6": (v2(shape=[1, 3, 6], data=PIXELS[:18]), 400),
    "19 4 by 7": (v2(shape=[1, 4, 7], data=[*PIXELS, 0, 0, 0, 0]), 400),
    "19 ragged": (v2(data=[[[0] * 6, [0] * 5, [0] * 7, [0] * 6]]), 400),
    **{f"20 {value}": (values(value), 400) for value in ('"1"', "true", "null", "{}")},
    **{f"21 {value}": (values(value), 400) for value in ("-1", "256", "1e308", "0.5")},
    "22 a row too many": (binary(bytes(17 * STRIPES.num_pixels)), 413),
    "22 a row too many in JSON": (v2(shape=[17, *STRIPES.shape], data=PIXELS * 17), 413),
    "22 a row too many in V1": (v1(json.dumps({"instances": [PIXELS] * 17}).encode()), 413),
    "23 60,000 keys": (v1(json.dumps({f"{k}": k for k in range(60_000)}).encode()), 400),
    "29 no type": (request("POST", V1, GOOD, {}), 200),
    "30 a type of no text": (
        httpx.Request(
            "POST", f"http://server{V1}", content=GOOD, headers=[(b"Content-Type", b"\xff")]
        ),
        200,
    ),
    "31 text": (v1(GOOD, **{"Content-Type": "text/plain"}), 200),
    "32 a picture said to be JSON": (v1(PNG), 400),
    "33 a picture where JSON belongs": (v1(PNG, **{"Content-Type": "image/png"}), 400),
    "34 gzip": (v1(gzip.compress(GOOD), **{"Content-Encoding": "gzip"}), 200),
    "34 a bomb": (v1(gzip.compress(bytes(64 << 20)), **{"Content-Encoding": "gzip"}), 413),
    "34 no gzip": (v1(GOOD, **{"Content-Encoding": "gzip"}), 400),
    "34 brotli": (v1(GOOD, **{"Content-Encoding": "br"}), 415),
    "35 XML wanted": (v1(GOOD, Accept="application/xml"), 200),
    **{f"36 {method}": (get(PREDICT, method), 405) for method in ("GET", "PUT", "DELETE")},
    "37 an unknown address": (get("/v3"), 404),
    "38 an unknown model": (get("/v2/models/other"), 404),
    "38 an unknown version": (get("/v2/models/stripes/versions/0"), 404),
    **{f"39 {name[:30]!r}": (get(f"/v2/models/{name}/ready"), 404) for name in NAMES},
    "40 not whole images": (binary(bytes(25)), 400),
    "41 no bytes": (binary(b""), 400),
    "42 floats": (v2(datatype="FP32", data=[0.5] * STRIPES.num_pixels), 400),
    "43 2^32 images": (v2(shape=[2**32, 2**32], parameters={"binary_data_size": 1}), 400),
    "43 2^32 rows": (v2(shape=[2**32, *STRIPES.shape]), 413),
    "43 -1 rows": (v2(shape=[-1, *STRIPES.shape]), 400),
    "44 a datatype O": (v2(datatype="O"), 400),
    **{f"45 {size}": (binary(GOOD, size), 400) for size in ("99999999999", "-1", "abc", "1e3")},
    "46 no picture": (picture(b""), 400),
    "46 a signature alone": (picture(PNG[:8]), 422),
    "46 cut in its header": (picture(PNG[:20]), 422),
    "46 cut in its pixels": (picture(PNG[:-20]), 422),
    "46 without its end": (picture(PNG[:-12]), 422),
    "47 a wrong checksum": (picture(drawn(6, 4, crc=1)), 422),
    **{f"48 {side} by {side}": (picture(drawn(side, side)), 422) for side in (0, 65535, 2**31 - 1)},
    "49 a bomb of text": (picture(drawn(6, 4, BOMB)), 422),
    "50 16 bits": (picture(png("I;16")), 200),
    "50 a palette": (picture(png("P")), 200),
    "50 alpha": (picture(png("LA")), 200),
    "50 animated": (
        picture(png(save_all=True, append_images=[Image.fromarray(stripe(1))])),
        200,
    ),
    **{f"51 {kind}": (picture(png(format=kind)), 415) for kind in ("GIF", "TIFF", "BMP", "WEBP")},
    "51 SVG": (picture(b"<svg/>"), 415),
    "51 PDF": (picture(b"%PDF-1.4"), 415),
    "52 a picture that is a zip as well": (picture(PNG + zipped()), 200),
    "53 no boundary": (form(part(PNG) + b"--x--\r\n", ""), 400),
    "53 another boundary": (form(part(PNG) + b"--x--\r\n", "; boundary=y"), 400),
    "53 10,000 parts": (form(part(b"") * 10_000 + b"--x--\r\n"), 400),
    "53 a long preamble": (form(bytes(1_000_000) + b"\r\n" + part(PNG) + b"--x--\r\n"), 400),
    "53 no file": (form(b"--x--\r\n"), 400),
    "53 two files": (form(part(PNG) * 2 + b"--x--\r\n"), 200),
    "53 a file elsewhere": (form(part(PNG, "../../x") + b"--x--\r\n"), 200),
}


def addressed(request: httpx.Request, server: str) -> httpx.Request:
    """The request as it is sent to the server at this URL."""
    address = httpx.URL(server)
    request.url = request.url.copy_with(host=address.host, port=address.port)
    request.headers["host"] = address.netloc.decode()
    return request
