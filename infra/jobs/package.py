"""The files that a job takes to the cluster: a working folder, or wheels and their pins."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.artifacts.commit import digest
from pipeline.errors import SettingError

MAX_BYTES = 512 << 20
"""The size of the largest working folder that Ray takes, compressed."""

LEFT_OUT = {".git", ".venv", "venv", "__pycache__"}
"""Folders that Ray never sends."""

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"

SENT = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
"""Where the files that are sent lie on a node, when pip installs them."""


def require_sendable(folder: Path) -> None:
    """Raise SettingError, before anything is sent, if a working folder is none or too big.

    A .rayignore file leaves the decision to Ray.
    """
    if not folder.is_dir():
        raise SettingError(f"--working-dir {str(folder)!r} is not a folder.")
    if (folder / ".rayignore").exists():
        return
    sizes = Counter[str]()
    for path in _files(folder):
        if path.is_file():
            sizes[path.relative_to(folder).parts[0]] += path.stat().st_size
    total = sum(sizes.values())
    if total > MAX_BYTES:
        largest = ", ".join(f"{name} ({n >> 20:,} MiB)" for name, n in sizes.most_common(3))
        raise SettingError(
            f"--working-dir {str(folder)!r} has {total >> 20:,} MiB, and Ray sends at most "
            f"{MAX_BYTES >> 20}: {largest}. Name what the job does not need in .rayignore or "
            ".gitignore, and keep data where all nodes see it."
        )


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder without those that git ignores, if it is in a repository."""
    command = ("git", "-C", folder, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout
        return [folder / name for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        # No repository.
        return [path for path in folder.rglob("*") if not LEFT_OUT & set(path.parts)]


def stage_wheels(wheels: list[Path], folder: Path) -> dict[str, Any]:
    """Copy wheels and their pins into a folder; return the runtime_env that installs them.

    Ray keeps the environment, on each node, for other jobs with the same wheels and pins.
    """
    # The nodes have their Ray, and installing another is an error.
    pins = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("ray==")]
    (folder / CONSTRAINTS.name).write_text("\n".join(pins))
    packages = [f"--constraint {SENT}/{CONSTRAINTS.name}"]
    for wheel in wheels:
        if not wheel.is_file():
            raise SettingError(f"--wheel {str(wheel)!r} is not a file.")
        # Ray tells environments apart by these lines, so a wheel's content must be part of them.
        own = folder / digest(wheel.read_bytes().hex(), CONSTRAINTS.read_text())
        own.mkdir(exist_ok=True)
        shutil.copy(wheel, own)
        extras = "[all]" if wheel.name.startswith("ray_onnx_pipeline-") else ""
        packages.append(f"{SENT}/{own.name}/{wheel.name}{extras}")
    return {"working_dir": str(folder), "pip": {"packages": packages}}
