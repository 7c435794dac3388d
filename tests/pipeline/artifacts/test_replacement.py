from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.artifacts.commit import load, read_file
from pipeline.artifacts.manifests import EvaluationManifest
from pipeline.artifacts.replacement import Replacement
from pipeline.artifacts.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def write(replacement: Replacement, *contents: bytes) -> EvaluationManifest:
    files = [replacement.write(f"{n}.html", content) for n, content in enumerate(contents)]
    return EvaluationManifest(model="m/0", dataset="d/0", metrics={}, files=tuple(files))


def build(storage: Storage, *contents: bytes) -> None:
    replacement = Replacement(storage, "m", EvaluationManifest)
    replacement.commit(write(replacement, *contents))


def stored(storage: Storage) -> list[bytes]:
    """Return the contents that the manifest lists, verified."""
    manifest = load(storage, "m", EvaluationManifest)
    return [read_file(storage, "m", entry) for entry in manifest.files]


def names(storage: Storage) -> list[str]:
    return [path.removeprefix("m/") for path in storage.files("m")]


def test_readers_see_the_old_artifact_until_the_new_one_is_committed(storage: Storage) -> None:
    build(storage, b"old", b"same", b"dropped")
    replacement = Replacement(storage, "m", EvaluationManifest)
    for count in range(3):
        manifest = write(replacement, *(b"new", b"same")[:count])
        assert stored(storage) == [b"old", b"same", b"dropped"]
    replacement.commit(manifest)
    assert stored(storage) == [b"new", b"same"]
    assert len(names(storage)) == 3, "two files and the manifest: the old files are deleted"


def test_a_file_has_its_plain_name_unless_the_old_artifact_needs_it(storage: Storage) -> None:
    build(storage, b"old")
    build(storage, b"old")
    assert names(storage) == ["0.html", "evaluation.json"]
    build(storage, b"new")
    assert names(storage) == ["0-11507a0e2f5e.html", "evaluation.json"]
    build(storage, b"old")
    assert names(storage) == ["0.html", "evaluation.json"]


def test_the_same_content_heals_a_damaged_file(storage: Storage) -> None:
    build(storage, b"old")
    storage.write("m/0.html", b"bad")
    build(storage, b"old")
    assert stored(storage) == [b"old"]


def test_a_damaged_manifest_is_replaced(storage: Storage) -> None:
    build(storage, b"old")
    storage.write("m/evaluation.json", b"{")
    build(storage, b"new")
    assert stored(storage) == [b"new"]
