from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.contract import ArtifactDamaged, ArtifactMissing, ImageSpec
from pipeline.manifest import DatasetManifest, commit, digest, find, load, read_file, write_file
from pipeline.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def make(storage: Storage) -> DatasetManifest:
    entry = write_file(storage, "d", "train/a", b"content", rows=1)
    return DatasetManifest(
        name="d",
        version="0",
        image=ImageSpec(1, 7, ("a", "b")),
        rows={"train": 1},
        source={},
        files=(entry,),
    )


def test_an_artifact_is_seen_once_it_is_committed(storage: Storage) -> None:
    manifest = make(storage)
    assert find(storage, "d", DatasetManifest) is None
    commit(storage, "d", manifest)
    found = find(storage, "d", DatasetManifest)
    assert found == manifest
    assert read_file(storage, "d", found.shards("train")[0]) == b"content"


def test_committing_twice_gives_the_same_bytes(storage: Storage) -> None:
    commit(storage, "d", make(storage))
    first = storage.read("d/manifest.json")
    commit(storage, "d", make(storage))
    assert storage.read("d/manifest.json") == first


def test_a_missing_artifact_names_the_command_that_makes_it(storage: Storage) -> None:
    with pytest.raises(ArtifactMissing, match="Make it first: python -m pipeline preprocess"):
        load(storage, "d", DatasetManifest)


@pytest.mark.parametrize("content", [b"", b"contents", b"Content"])
def test_a_file_that_changed_is_damaged(storage: Storage, content: bytes) -> None:
    manifest = make(storage)
    storage.write("d/train/a", content)
    with pytest.raises(ArtifactDamaged, match="its manifest says"):
        read_file(storage, "d", manifest.files[0])


def test_a_file_that_went_is_damaged(storage: Storage) -> None:
    manifest = make(storage)
    storage.delete("d/train/a")
    with pytest.raises(ArtifactDamaged, match="is missing, though its manifest lists it"):
        read_file(storage, "d", manifest.files[0])


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 2}', b'{"kind": "run"}'])
def test_a_manifest_that_is_none_is_damaged(storage: Storage, text: bytes) -> None:
    storage.write("d/manifest.json", text)
    with pytest.raises(ArtifactDamaged, match="is not a manifest of this version"):
        find(storage, "d", DatasetManifest)


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest()) == 12
