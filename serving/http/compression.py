"""Content-Encoding: gzip and deflate, of requests and replies."""

from __future__ import annotations

import zlib

from serving.errors import PayloadTooLarge, RequestInvalid, UnsupportedMedia, safe_repr

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Of zlib, for each encoding (RFC 9110, 8.4.1)."""

LEVEL = 1

MIN_BYTES = 1024
"""A shorter reply is sent as it is: it fits one packet either way."""


def decompress(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """The body that was encoded; never unpacks more than `max_bytes`."""
    if encoding == "identity":
        return body
    if encoding not in WINDOW_BITS:
        raise UnsupportedMedia(
            f"Content-Encoding is {safe_repr(encoding)}. Send {', '.join(WINDOW_BITS)}, or the body "
            "as it is."
        )
    unpacker = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        plain = unpacker.decompress(body, max_bytes + 1)
    except zlib.error:
        raise RequestInvalid(f"The body is not {encoding}. Pack it again.") from None
    if len(plain) > max_bytes:
        raise PayloadTooLarge(
            f"The body unpacks to more than {max_bytes >> 20} MiB. Send the images in several "
            "requests."
        )
    if not unpacker.eof or unpacker.unused_data:
        raise RequestInvalid(f"The body is not one whole {encoding} stream. Pack it again.")
    return plain


def negotiate(header: str) -> str:
    """The encoding for a reply, of those that Accept-Encoding asks for; identity for none."""
    for wish in header.split(","):
        name, _, weight = wish.strip().partition(";")
        if name in WINDOW_BITS and weight.replace(" ", "") not in ("q=0", "q=0.0"):
            return name
    return "identity"


def compress(body: bytes, encoding: str) -> bytes:
    """The body, encoded."""
    packer = zlib.compressobj(LEVEL, wbits=WINDOW_BITS[encoding])
    return packer.compress(body) + packer.flush()
