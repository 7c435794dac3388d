"""Download of a file from the first mirror that answers: resumed, verified, cached atomically.

pooch downloads and verifies too, but cannot continue a download that was cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3

from pipeline.artifacts.local_files import replace
from pipeline.console import progress, warn
from pipeline.errors import StorageError
from pipeline.process.addresses import is_loopback

ATTEMPTS_PER_MIRROR = 2

TIMEOUT_S = (5, 30)
"""To connect, and between two packets."""

CHUNK_BYTES = 1 << 18
"""Written at a time, so the progress bar moves several times per second."""


class Unreachable(Exception):
    """An error that lists, mirror by mirror, why none of them gave the file."""


def download(
    urls: Sequence[str], path: Path, sha256: str | None = None, *, force: bool = False
) -> None:
    """Download the file that these URLs mirror to `path`, unless it is already there.

    A file of a known sha256 is downloaded again if its content is another; one without, if `force`
    says so. A cut download is continued, also by a later run, if the server says that the file is
    still the same. A download with another sha256 is deleted, and the next mirror is tried. Raise
    Unreachable if no mirror is left, StorageError if the folder cannot be written.
    """
    reasons: list[str] = []
    for url in urls:
        try:
            if _is_cached(path, sha256, force=force):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            reason = _try_mirror(url, _partial(path, url), sha256)
            if reason is None:
                replace(_partial(path, url), path)
                for any_url in urls:
                    _discard(_partial(path, any_url))
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


def _partial(path: Path, url: str) -> Path:
    """Return a file for each URL: mirrors may differ, so their bytes are never joined."""
    return path.with_name(f"{path.name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")


def _is_cached(path: Path, sha256: str | None, *, force: bool) -> bool:
    if not path.exists():
        return False
    if sha256 is None:
        return not force
    if _sha256(path) == sha256:
        return True
    warn(f"{path} is damaged; downloading it again")
    path.unlink()
    return False


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
        _discard(partial)
        reason = f"content has sha256 {actual[:12]}, not {sha256[:12]}"
    return reason


def _fetch(url: str, partial: Path) -> None:
    """Download the bytes that the partial file does not have yet, or all if the file changed."""
    tag = _tag_file(partial).read_text() if _tag_file(partial).exists() else ""
    size = partial.stat().st_size if tag and partial.exists() else 0
    # Compressed, the bytes would not match the range and the Content-Length.
    headers = {"Accept-Encoding": "identity"}
    if size:
        # The server sends the whole file if it is no longer the one with this tag.
        headers |= {"Range": f"bytes={size}-", "If-Range": tag}
    with _get(url, headers) as reply:
        content_range = reply.headers.get("Content-Range", "")
        if size and reply.status_code == requests.codes.requested_range_not_satisfiable:
            if content_range == f"bytes */{size}":
                return
            _discard(partial)
            raise requests.ConnectionError("the server refuses to continue")
        reply.raise_for_status()
        resumed = reply.status_code == requests.codes.partial_content
        if resumed and not content_range.startswith(f"bytes {size}-"):
            raise requests.ConnectionError(f"the server sent another part: {content_range!r}")
        if not resumed:
            size = 0
            _discard(partial)
            _tag_file(partial).write_text(_tag(reply))
        total = size + int(reply.headers.get("Content-Length", 0))
        name = url.rsplit("/", 1)[-1]
        with partial.open("ab") as file, progress(name, total=total) as show:
            # read1 returns the bytes that arrived before a cut; read would raise and lose them.
            while chunk := reply.raw.read1(CHUNK_BYTES):
                file.write(chunk)
                size += len(chunk)
                show(size, "bytes")
        if total and size < total:
            raise requests.ConnectionError(f"cut after {size} of {total} bytes")


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    """Return the reply to a request, whose body is not read yet."""
    with requests.Session() as session:
        # A proxy of the environment could not reach this machine's own loopback.
        session.trust_env = not is_loopback(urlsplit(url).hostname or "")
        return session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)


def _tag(reply: requests.Response) -> str:
    """Return what changes with every version of the file, or "" if the server does not say."""
    tag = reply.headers.get("ETag", "")
    # A weak tag may stay the same for other bytes.
    return tag if tag.startswith('"') else reply.headers.get("Last-Modified", "")


def _tag_file(partial: Path) -> Path:
    """Return the file that holds the tag of a partial file's content."""
    return partial.with_suffix(".tag")


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _tag_file(partial).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"status {error.response.status_code}"
    return type(error).__name__ if len(str(error)) > 80 else str(error)
