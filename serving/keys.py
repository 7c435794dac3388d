"""API keys: who may send requests. `python -m serving.keys` creates one.

A server stores only the SHA-256 digests of its keys. A key has 256 random bits, so an unsalted
digest cannot be brute-forced. Several keys are valid at once, so clients can be moved from an old
key to a new one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence

DIGEST = re.compile(r"[0-9a-f]{64}")


def digest(key: bytes) -> str:
    """Return the SHA-256 digest of a key, 64 hex digits, which is all that a server stores."""
    return hashlib.sha256(key).hexdigest()


def valid(key: bytes, digests: Sequence[str]) -> bool:
    """Return whether the key has one of these digests.

    Takes the same time whether one matches or none: every digest is compared in full.
    """
    key_digest = digest(key)
    # A list, not a generator with any(), which would stop at the first match.
    return sum([hmac.compare_digest(key_digest, known) for known in digests]) > 0


def sent_key(headers: Mapping[str, str]) -> bytes:
    """Return the key in `Authorization: Bearer KEY` or `X-API-Key: KEY`; empty if there is none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = headers.get("x-api-key", "")
    return key.strip().encode("latin-1")


def main() -> None:
    """Print a new key, for a client, and its digest, for servers."""
    key = secrets.token_urlsafe(32)
    print(f"key     {key}\ndigest  {digest(key.encode())}")


if __name__ == "__main__":
    main()
