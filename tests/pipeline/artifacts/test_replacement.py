from __future__ import annotations

import pytest

from pipeline.artifacts import commit
from pipeline.artifacts.commit import load, read_file
from pipeline.artifacts.manifests import EvaluationManifest, FileEntry
from pipeline.artifacts.replacement import Replacement
from pipeline.artifacts.storage import Storage
from pipeline.errors import StorageError


def make(*files: FileEntry) -> EvaluationManifest:
    return EvaluationManifest(
        model="m/0123456789ab", dataset="d/0123456789ab", metrics={}, files=files
    )


def begin(storage: Storage) -> Replacement[EvaluationManifest]:
    return Replacement(storage, "m", EvaluationManifest)


def write(replacement: Replacement[EvaluationManifest], *contents: bytes) -> EvaluationManifest:
    return make(*(replacement.write(f"{n}.html", content) for n, content in enumerate(contents)))


def build(storage: Storage, *contents: bytes) -> None:
    replacement = begin(storage)
    replacement.commit(write(replacement, *contents))


def stored(storage: Storage) -> list[bytes]:
    """Return the contents that the manifest lists, verified."""
    manifest = load(storage, "m", EvaluationManifest)
    return [read_file(storage, "m", entry) for entry in manifest.files]


def names(storage: Storage) -> list[str]:
    paths = [path.removeprefix("m/") for path in storage.files("m")]
    return [path for path in paths if not path.startswith(".")]


def test_readers_see_the_old_artifact_until_the_new_one_is_committed(storage: Storage) -> None:
    build(storage, b"old", b"same", b"dropped")
    replacement = begin(storage)
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


def test_of_two_replacements_at_once_the_first_stays_whole(storage: Storage) -> None:
    """The second writes files that the first deletes, as those of the old artifact."""
    build(storage, b"old")
    second, first = begin(storage), begin(storage)
    manifest = write(second, b"old", b"more")
    first.commit(write(first, b"new"))
    with pytest.raises(StorageError, match=r"Another process wrote .*/m/evaluation\.json in"):
        second.commit(manifest)
    assert stored(storage) == [b"new"]


def test_two_that_write_the_same_artifact_both_succeed(storage: Storage) -> None:
    both = [begin(storage), begin(storage)]
    for replacement in both:
        replacement.commit(write(replacement, b"same"))
    assert stored(storage) == [b"same"]


def test_tables_of_the_old_manifest_are_deleted(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "MAX_LISTED", 1)
    build(storage, b"a", b"b")
    (table,) = {*names(storage)} - {"0.html", "1.html", "evaluation.json"}
    build(storage, b"a", b"b")
    assert table in names(storage)
    assert stored(storage) == [b"a", b"b"]
    build(storage, b"a")
    assert names(storage) == ["0.html", "evaluation.json"]


def test_files_that_are_discarded_stay_if_the_old_artifact_has_them(storage: Storage) -> None:
    build(storage, b"one")
    replacement = Replacement(storage, "m", EvaluationManifest)
    write(replacement, b"one", b"two")
    replacement.discard(["0.html", "1.html"])
    assert stored(storage) == [b"one"]
    assert "1.html" not in names(storage)
