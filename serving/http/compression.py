"""Content-Encoding of requests and responses: gzip and deflate."""

from __future__ import annotations

import zlib

from serving.errors import PayloadTooLarge, RequestInvalid, UnsupportedMedia, safe_repr

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""zlib's `wbits` of each encoding; HTTP's deflate is the zlib format (RFC 9110, 8.4.1)."""

LEVEL = 1
"""zlib's fastest level: compression runs in the event loop, so other requests wait for it."""

MIN_BYTES = 1024
"""A shorter response is sent uncompressed: it fits one packet either way."""


def decompress(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """Return the body without its encoding.

    Raise UnsupportedMedia for other encodings, RequestInvalid if the body is not one complete
    stream, and PayloadTooLarge if it holds more than `max_bytes`; unpacking stops there.
    """
    if encoding == "identity":
        return body
    if encoding not in WINDOW_BITS:
        raise UnsupportedMedia(
            f"Content-Encoding is {safe_repr(encoding)}. Send {', '.join(WINDOW_BITS)}, or the "
            "body uncompressed."
        )
    decompressor = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        # One byte over the limit is enough to tell that the body exceeds it.
        plain = decompressor.decompress(body, max_bytes + 1)
    except zlib.error:
        raise RequestInvalid(f"The body is not {encoding}. Compress it again.") from None
    if len(plain) > max_bytes:
        raise PayloadTooLarge(
            f"The body decompresses to more than {max_bytes >> 20} MiB. Send the images in several "
            "requests."
        )
    if not decompressor.eof or decompressor.unused_data:
        raise RequestInvalid(f"The body is not one complete {encoding} stream. Compress it again.")
    return plain


def negotiate(accept_encoding: str) -> str:
    """Return the first supported encoding in an Accept-Encoding header; identity if none is."""
    for item in accept_encoding.split(","):
        name, _, weight = item.strip().partition(";")
        # Weight 0 means "not acceptable"; other weights do not change the order.
        if name in WINDOW_BITS and weight.replace(" ", "") not in ("q=0", "q=0.0"):
            return name
    return "identity"


def compress(body: bytes, encoding: str) -> bytes:
    """Return the body in this encoding."""
    compressor = zlib.compressobj(LEVEL, wbits=WINDOW_BITS[encoding])
    return compressor.compress(body) + compressor.flush()
