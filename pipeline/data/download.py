"""Downloads a file from the first mirror that answers: resumed, verified, cached atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import requests
import urllib3

from pipeline.console import progress, warn
from pipeline.errors import StorageError

ATTEMPTS_PER_MIRROR = 2

TIMEOUT_S = (5, 30)

BLOCK_BYTES = 1 << 18


class Unreachable(Exception):
    """No mirror gave the file; the message says why, mirror by mirror."""


def download(urls: Sequence[str], path: Path, sha256: str | None = None) -> None:
    """Makes `path` hold what the URLs offer; does nothing where it is there already.

    A cut connection goes on where it stopped, also in a later run. A file whose sha256 is not the
    one given is dropped, and the next mirror tried. Raises Unreachable where none is left.
    """
    if path.exists():
        return
    reasons: list[str] = []
    for url in urls:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(
                f"{path.name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
            )
            reason = _try(url, part, sha256)
            if reason is None:
                part.replace(path)
                return
        except OSError as error:
            raise StorageError(
                f"The download cache {path.parent} cannot be written: {error.strerror or error}. "
                "Give another one by --data.cache."
            ) from None
        reasons.append(f"{url}: {reason}")
        if url != urls[-1]:
            warn(f"{reasons[-1]}; trying the next mirror")
    raise Unreachable("; ".join(reasons))


def _try(url: str, part: Path, sha256: str | None) -> str | None:
    """Completes `part` from one mirror; returns why it did not, or None where it did."""
    reason = None
    for _ in range(ATTEMPTS_PER_MIRROR):
        try:
            _fetch(url, part)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _reason(error)
            continue
        if sha256 is None or (found := _sha256(part)) == sha256:
            return None
        part.unlink()
        reason = f"content has sha256 {found[:12]}, not {sha256[:12]}"
    return reason


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as reply:
        if have and reply.status_code == requests.codes.requested_range_not_satisfiable:
            return
        reply.raise_for_status()
        resumed = reply.status_code == requests.codes.partial_content
        done = have if resumed else 0
        total = done + int(reply.headers.get("Content-Length", 0))
        name = url.rsplit("/", 1)[-1]
        with part.open("ab" if resumed else "wb") as file, progress(name, total=total) as bar:
            # read1 hands over what has come before it reports that no more will.
            while block := reply.raw.read1(BLOCK_BYTES):
                file.write(block)
                done += len(block)
                bar(done, "bytes")
        if total and done < total:
            raise requests.ConnectionError(f"cut after {done} of {total} bytes")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"status {error.response.status_code}"
    return type(error).__name__ if len(str(error)) > 80 else str(error)
