"""API keys: who may ask for predictions. `python -m serving.keys` makes one.

A server knows only the SHA-256 digests of its keys. As keys are 256 random bits, a plain digest
cannot be searched. Several are valid at once, so that clients can move from one to the next.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence

DIGEST = re.compile(r"[0-9a-f]{64}")


def digest(key: bytes) -> str:
    """What a server stores of a key: hex, 64 digits."""
    return hashlib.sha256(key).hexdigest()


def valid(key: bytes, digests: Sequence[str]) -> bool:
    """Whether a key is one of these, in a time that does not depend on which, or how nearly."""
    found = digest(key)
    return sum([hmac.compare_digest(found, known) for known in digests]) > 0


def sent_key(headers: Mapping[str, str]) -> bytes:
    """The key of a request: `Authorization: Bearer KEY` or `X-API-Key: KEY`; empty without one."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = headers.get("x-api-key", "")
    return key.strip().encode("latin-1")


def main() -> None:
    """Prints a new key, for a client, and its digest, for servers."""
    key = secrets.token_urlsafe(32)
    print(f"key     {key}\ndigest  {digest(key.encode())}")


if __name__ == "__main__":
    main()
