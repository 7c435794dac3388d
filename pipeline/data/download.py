"""Download of a file from the first mirror that answers: resumed, verified, cached atomically."""

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
"""To connect, and between two packets."""

CHUNK_BYTES = 1 << 18
"""Written at a time, so the progress bar moves several times per second."""


class Unreachable(Exception):
    """An error that lists, mirror by mirror, why none of them gave the file."""


def download(urls: Sequence[str], path: Path, sha256: str | None = None) -> None:
    """Download the file that these URLs mirror to `path`, unless it already exists.

    A cut download is continued, also by a later run. A file with another sha256 is deleted, and the
    next mirror is tried. Raise Unreachable if no mirror is left, StorageError if the folder cannot
    be written.
    """
    if path.exists():
        return
    reasons: list[str] = []
    for url in urls:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A partial file per URL: mirrors may differ, so their bytes are never joined.
            url_digest = hashlib.sha256(url.encode()).hexdigest()[:8]
            partial = path.with_name(f"{path.name}-{url_digest}.part")
            reason = _try_mirror(url, partial, sha256)
            if reason is None:
                partial.replace(path)
                return
        except OSError as error:
            raise StorageError(
                f"The download cache {path.parent} cannot be written: {error.strerror or error}. "
                "Give another one with --data.cache."
            ) from None
        reasons.append(f"{url}: {reason}")
        if url != urls[-1]:
            warn(f"{reasons[-1]}; trying the next mirror")
    raise Unreachable("; ".join(reasons))


def _try_mirror(url: str, partial: Path, sha256: str | None) -> str | None:
    """Complete the partial file from one mirror. Return the reason of a failure, or None."""
    reason = None
    for _ in range(ATTEMPTS_PER_MIRROR):
        try:
            _fetch(url, partial)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _describe(error)
            continue
        if sha256 is None:
            return None
        actual = _sha256(partial)
        if actual == sha256:
            return None
        partial.unlink()
        reason = f"content has sha256 {actual[:12]}, not {sha256[:12]}"
    return reason


def _fetch(url: str, partial: Path) -> None:
    """Download the bytes that the partial file does not have yet."""
    size = partial.stat().st_size if partial.exists() else 0
    # Compressed, the bytes would not match the range and the Content-Length.
    headers = {"Accept-Encoding": "identity"}
    if size:
        headers["Range"] = f"bytes={size}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as reply:
        if size and reply.status_code == requests.codes.requested_range_not_satisfiable:
            # The partial file is complete.
            return
        reply.raise_for_status()
        resumed = reply.status_code == requests.codes.partial_content
        if not resumed:
            size = 0
        total = size + int(reply.headers.get("Content-Length", 0))
        name = url.rsplit("/", 1)[-1]
        with partial.open("ab" if resumed else "wb") as file, progress(name, total=total) as show:
            # read1 returns the bytes that arrived before a cut; read would raise and lose them.
            while chunk := reply.raw.read1(CHUNK_BYTES):
                file.write(chunk)
                size += len(chunk)
                show(size, "bytes")
        if total and size < total:
            raise requests.ConnectionError(f"cut after {size} of {total} bytes")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"status {error.response.status_code}"
    return type(error).__name__ if len(str(error)) > 80 else str(error)
