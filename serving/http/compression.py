"""Content-Encoding of requests and responses: gzip and deflate."""

from __future__ import annotations

import re
import zlib

from serving.errors import PayloadTooLarge, RequestInvalid, UnsupportedMedia, safe_repr

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""zlib's `wbits` of each encoding; HTTP's deflate is the zlib format (RFC 9110, 8.4.1)."""

LEVEL = 1
"""zlib's fastest level: compression runs in the event loop, so other requests wait for it."""

MIN_BYTES = 1024
"""A shorter response is sent uncompressed: it fits one packet either way."""

_WEIGHT = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")


def decompress(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """Return the body without its encoding.

    Raise UnsupportedMedia for other encodings, RequestInvalid if the body is not one complete
    stream, and PayloadTooLarge if it holds more than `max_bytes`; unpacking stops there.
    """
    name = _plain_name(encoding)
    if name == "identity":
        return body
    if name not in WINDOW_BITS:
        raise UnsupportedMedia(
            f"Content-Encoding is {safe_repr(encoding)}. Send {', '.join(WINDOW_BITS)}, or the "
            "body uncompressed."
        )
    decompressor = zlib.decompressobj(WINDOW_BITS[name])
    try:
        # One byte over the limit is enough to tell that the body exceeds it.
        plain = decompressor.decompress(body, max_bytes + 1)
    except zlib.error:
        raise RequestInvalid(f"The body is not {name}. Compress it again.") from None
    if len(plain) > max_bytes:
        raise PayloadTooLarge(
            f"The body decompresses to more than {max_bytes >> 20} MiB. Send the images in several "
            "requests."
        )
    if not decompressor.eof or decompressor.unused_data:
        raise RequestInvalid(f"The body is not one complete {name} stream. Compress it again.")
    return plain


def negotiate(accept_encoding: str, *, prefer_plain: bool = False) -> str:
    """Return the encoding of most weight in an Accept-Encoding header (RFC 9110, 12.5.3).

    Of equal ones, the first of WINDOW_BITS; with `prefer_plain`, identity unless it is refused.
    """
    weights = dict[str, float]()
    for item in accept_encoding.split(","):
        name, _, parameter = item.partition(";")
        weights[_plain_name(name)] = _weight(parameter)
    anything = weights.get("*", 0.0)
    # Identity may be sent unless it is refused, but a client that names others wants them.
    identity = weights.get("identity", 0.0 if "*" in weights and not anything else 1e-4)
    if prefer_plain and identity:
        return "identity"
    best = max(WINDOW_BITS, key=lambda name: weights.get(name, anything))
    return best if weights.get(best, anything) > identity else "identity"


def _plain_name(encoding: str) -> str:
    """Return the name of an encoding without case, and without the x- of old clients."""
    return encoding.strip().lower().removeprefix("x-")


def _weight(parameter: str) -> float:
    """Return the weight in `q=0.5`; 1 if there is none, 0 if it is not a weight."""
    name, _, value = parameter.partition("=")
    if not parameter.strip():
        return 1.0
    is_weight = name.strip().lower() == "q" and _WEIGHT.fullmatch(value.strip())
    return float(value) if is_weight else 0.0


def compress(body: bytes, encoding: str) -> bytes:
    """Return the body in this encoding."""
    compressor = zlib.compressobj(LEVEL, wbits=WINDOW_BITS[encoding])
    return compressor.compress(body) + compressor.flush()
