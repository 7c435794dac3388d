from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.commit import commit, digest, find, load, read_file, write_file
from pipeline.artifacts.manifests import DatasetManifest, FileEntry, Manifest, ScoresManifest
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec
from pipeline.errors import ArtifactDamaged, ArtifactMissing, UserError


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
    loaded = find(storage, "d", DatasetManifest)
    assert loaded == manifest
    assert read_file(storage, "d", loaded.shards("train")[0]) == b"content"


def test_committing_twice_gives_the_same_bytes(storage: Storage) -> None:
    commit(storage, "d", make(storage))
    first = storage.read("d/manifest.json")
    commit(storage, "d", make(storage))
    assert storage.read("d/manifest.json") == first


def test_the_error_of_a_missing_artifact_names_its_command(storage: Storage) -> None:
    with pytest.raises(ArtifactMissing, match="Build it first: python -m pipeline preprocess"):
        load(storage, "d", DatasetManifest)


@pytest.mark.parametrize("content", [b"", b"contents", b"Content"])
def test_a_changed_file_makes_an_artifact_damaged(storage: Storage, content: bytes) -> None:
    manifest = make(storage)
    storage.write("d/train/a", content)
    with pytest.raises(ArtifactDamaged, match="its manifest says"):
        read_file(storage, "d", manifest.files[0])


def test_a_missing_file_makes_an_artifact_damaged(storage: Storage) -> None:
    manifest = make(storage)
    storage.delete("d/train/a")
    with pytest.raises(ArtifactDamaged, match="is missing, though its manifest lists it"):
        read_file(storage, "d", manifest.files[0])


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 2}', b'{"kind": "run"}'])
def test_an_invalid_manifest_is_damaged(storage: Storage, text: bytes) -> None:
    storage.write("d/manifest.json", text)
    with pytest.raises(ArtifactDamaged, match="is not a manifest of this version"):
        find(storage, "d", DatasetManifest)


COUNTS = st.integers(0, 2**63)
ENTRIES = st.builds(
    FileEntry, path=st.text(), bytes=COUNTS, sha256=st.text(), rows=st.none() | COUNTS
)
COMMON = {
    "image": st.builds(
        ImageSpec, st.integers(1, 999), st.integers(1, 999), st.lists(st.text()).map(tuple)
    ),
    "files": st.lists(ENTRIES).map(tuple),
    "caveat": st.text(),
}
MANIFESTS = st.one_of(
    st.builds(
        DatasetManifest,
        name=st.text(),
        version=st.text(),
        rows=st.dictionaries(st.text(), COUNTS),
        source=st.dictionaries(st.text(), st.text()),
        **COMMON,
    ),
    st.builds(
        ScoresManifest,
        model=st.text(),
        probabilities=st.booleans(),
        columns=st.lists(st.text()).map(tuple),
        rows_per_shard=COUNTS,
        inputs=st.lists(ENTRIES).map(tuple),
        rows=COUNTS,
        **COMMON,
    ),
)


@given(MANIFESTS)
def test_a_committed_artifact_is_found(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest
) -> None:
    storage = Storage(str(tmp_path_factory.mktemp("root")))
    commit(storage, "d", manifest)
    assert find(storage, "d", type(manifest)) == manifest


@given(position=st.integers(0, 1000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_manifest_never_leads_to_other_content(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, cut: bool
) -> None:
    storage = Storage(str(tmp_path_factory.mktemp("root")))
    commit(storage, "d", make(storage))
    text = storage.read("d/manifest.json")
    position %= len(text)
    rest = b"" if cut else bytes([byte]) + text[position + 1 :]
    storage.write("d/manifest.json", text[:position] + rest)
    with suppress(UserError):
        loaded = load(storage, "d", DatasetManifest)
        assert [read_file(storage, "d", entry) for entry in loaded.files] == [b"content"]


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest()) == 12
