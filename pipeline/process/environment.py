"""The environment of a command and of the processes that it starts: checked, and put right.

It is for before other imports: Ray and onnxruntime read the environment when they are imported.
"""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path
from uuid import uuid4

from pipeline.errors import ResourcesMissing, SettingError

LOOPBACK = ("localhost", "127.0.0.1", "::1")

MAX_FOLDER_BYTES = 27
"""Longest path of the folder for temporary files. HAProxy puts a socket into it, under a name of 70
bytes, and allows 97 bytes for its path; Ray's sockets allow 39 bytes."""

MIN_FILES = 128
"""Files that a process of a local Ray opens, rounded up."""

FILES_PER_CPU = 4
"""Files that a process of Ray opens for each CPU, rounded up."""


def prepare(*, min_files: int = 0) -> None:
    """Bypass proxies on loopback; check the home, the temporary folder and the open files.

    `min_files` is for a command that opens more files than Ray does. Raise SettingError or
    ResourcesMissing if something is missing.
    """
    # Otherwise onnxruntime sends usage statistics, and complains if it has no home to note its ID.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    _bypass_proxies()
    _require_home()
    # Whoever started a cluster has chosen its folders and limits.
    if not os.environ.get("RAY_ADDRESS"):
        _choose_temporary_folder()
        _require_open_files(min_files)


def _bypass_proxies() -> None:
    """Name loopback in no_proxy: a proxy may not reach it, and would answer for this machine."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    # Programs read the one, the other, or both.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def _require_home() -> None:
    """Raise SettingError if HOME is not set and the user has no entry that names a home."""
    try:
        Path.home()
    except RuntimeError:
        raise SettingError(
            f"HOME is not set, and user {os.getuid()} has no name and no home on this machine. "
            "Set HOME to a folder that the user can write."
        ) from None


def _choose_temporary_folder() -> None:
    """Unset each variable that names a folder which Ray cannot use; it takes /tmp instead.

    Raise SettingError if /tmp cannot be used either.
    """
    problems = []
    for name in ("RAY_TMPDIR", "TMPDIR"):
        folder = os.environ.get(name)
        if folder is not None and (problem := _problem(folder)):
            problems.append(f"{name} is {folder!r}, which {problem}")
            del os.environ[name]
    if not problems and "RAY_TMPDIR" in os.environ:
        return
    if problem := _problem(os.environ.get("TMPDIR", "/tmp")):
        problems.append(f"/tmp {problem}")
        raise SettingError(
            f"{'; '.join(problems)}. Set TMPDIR to a folder for temporary files that can be "
            f"written and whose path has at most {MAX_FOLDER_BYTES} bytes."
        )
    if problems:
        logging.getLogger(__name__).warning("%s; /tmp is used instead.", "; ".join(problems))


def _problem(folder: str) -> str:
    """Return what keeps Ray from this folder for temporary files, or nothing."""
    if not os.path.isabs(folder):
        return "is not an absolute path"
    length = len(os.fsencode(folder))
    if length > MAX_FOLDER_BYTES:
        return f"has {length} bytes, but sockets there allow {MAX_FOLDER_BYTES}"
    probe = Path(folder, f".{uuid4().hex}")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return ""


def _require_open_files(min_files: int) -> None:
    """Raise ResourcesMissing if the hard limit of open files is too low.

    Ray itself raises the soft limit to the hard one.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(min_files, MIN_FILES + FILES_PER_CPU * (os.cpu_count() or 1))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ResourcesMissing(
            f"A process may open {hard} files (ulimit -Hn), but {needed} are needed on this "
            "machine. Raise the hard limit."
        )
