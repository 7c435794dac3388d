"""The files of an artifact's folder."""

from __future__ import annotations

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files that follow from the input alone: without figures, locks and leftovers."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if not path.name.endswith(".figures.json")
    }
