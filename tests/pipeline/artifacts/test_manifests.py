from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.commit import commit, digest, find, load, read_file, write_file
from pipeline.artifacts.manifests import (
    MAJOR,
    MINOR,
    NAME,
    VERSION_DIGITS,
    DatasetManifest,
    EvaluationManifest,
    FileEntry,
    Manifest,
    ModelManifest,
    RunManifest,
    ScoresManifest,
)
from pipeline.artifacts.storage import Storage
from pipeline.contract import VERSION, ImageSpec
from pipeline.errors import ArtifactDamaged, ArtifactMissing, ArtifactTooNew, UserError

OLD: dict[str, Any] = {
    "format": 1,
    "caveat": "",
    "files": [{"path": "train/part-0", "bytes": 5, "sha256": "0" * 64, "rows": 2}],
}

OLD_IMAGE = {"height": 28, "width": 28, "class_names": ["0", "1"]}

OLD_TENSOR = {"name": "image", "dtype": "uint8", "shape": [-1, 28, 28]}

OLD_MANIFESTS: dict[type[Manifest], dict[str, Any]] = {
    DatasetManifest: OLD
    | {
        "kind": "dataset",
        "name": "mnist",
        "version": "0123456789ab",
        "image": OLD_IMAGE,
        "rows": {"train": 2, "val": 0, "test": 0},
        "source": {"train_images": "0" * 64},
    },
    RunManifest: OLD
    | {
        "kind": "run",
        "run": "seed-0123456789ab",
        "dataset": "mnist/0123456789ab",
        "image": OLD_IMAGE,
        "training": {"optimizer": "sgd"},
        "device": "cpu",
        "metrics": [{"loss": 0.5, "accuracy": 0.9}],
        "checkpoint": "checkpoints/epoch-00001-step-0000000-0123456789ab/state.pt",
    },
    ModelManifest: OLD
    | {
        "kind": "model",
        "name": "mnist",
        "version": "0123456789ab",
        "run": "seed-0123456789ab",
        "dataset": "mnist/0123456789ab",
        "image": OLD_IMAGE,
        "inputs": [OLD_TENSOR],
        "outputs": [OLD_TENSOR],
        "parity_max_difference": 1e-7,
        "training": {},
    },
    EvaluationManifest: OLD
    | {
        "kind": "evaluation",
        "model": "mnist/0123456789ab",
        "dataset": "mnist/0123456789ab",
        "metrics": {"val": {"accuracy": 0.9}},
    },
    ScoresManifest: OLD
    | {
        "kind": "scores",
        "model": "mnist/0123456789ab",
        "image": OLD_IMAGE,
        "probabilities": False,
        "columns": ["key"],
        "rows_per_shard": 100,
        "inputs": [{"path": "odd\\name", "bytes": 1, "sha256": "0" * 64, "rows": None}],
        "rows": 2,
        "rejected": 0,
    },
}
"""As commit 61fd3da, version 0.1.0, wrote them."""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def make(storage: Storage) -> DatasetManifest:
    entry = write_file(storage, "d", "train/a", b"content", rows=1)
    return DatasetManifest(
        name="d",
        version="0" * 12,
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


INVALID = [b"", b"{", b"[]", b"{}", b'{"format": 1}', b'{"kind": "run"}', b'{"format": "1.x"}']


@pytest.mark.parametrize("text", INVALID)
def test_an_invalid_manifest_is_damaged(storage: Storage, text: bytes) -> None:
    storage.write("d/manifest.json", text)
    with pytest.raises(ArtifactDamaged, match="is not a valid manifest"):
        find(storage, "d", DatasetManifest)


def edit(storage: Storage, **fields: object) -> None:
    """Write the manifest that `make` describes, with other fields."""
    commit(storage, "d", make(storage))
    content = json.loads(storage.read("d/manifest.json"))
    storage.write("d/manifest.json", json.dumps(content | fields).encode())


def test_a_manifest_begins_with_its_format_and_its_writer(storage: Storage) -> None:
    commit(storage, "d", make(storage))
    fields = json.loads(storage.read("d/manifest.json"))
    assert list(fields.items())[:2] == [("format", f"{MAJOR}.{MINOR}"), ("written_by", VERSION)]


def test_fields_that_a_newer_minor_format_adds_are_ignored(storage: Storage) -> None:
    files = [{"path": "train/a", "bytes": 7, "sha256": "0" * 64, "rows": 1, "new": 1}]
    image = {"height": 1, "width": 7, "class_names": ["a", "b"], "new": {"newer": 1}}
    edit(storage, format=f"{MAJOR}.{MINOR + 1}", new=[1], files=files, image=image)
    loaded = load(storage, "d", DatasetManifest)
    assert (loaded.image.shape, loaded.files[0].path) == ((1, 7), "train/a")


def test_a_field_that_the_format_does_not_have_is_damage(storage: Storage) -> None:
    edit(storage, new=1)
    with pytest.raises(ArtifactDamaged, match="new: Extra inputs are not permitted"):
        find(storage, "d", DatasetManifest)


@pytest.mark.parametrize("format_", ["2.0", "12.3", 2])
def test_the_error_of_a_newer_major_format_says_what_reads_it(
    storage: Storage, format_: object
) -> None:
    edit(storage, format=format_, written_by="7.1.0", files={"everything": "differs"})
    with pytest.raises(ArtifactTooNew, match=rf"has format {format_}, .* Install version 7\.1\.0"):
        find(storage, "d", DatasetManifest)


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/../../b", "a/..", ".", "a/./b", "a//b", "a/", "a\\b", "a\0"]
)
def test_a_path_never_leads_out_of_the_artifact(storage: Storage, path: str) -> None:
    edit(storage, files=[{"path": path, "bytes": 0, "sha256": "0" * 64}])
    with pytest.raises(ArtifactDamaged, match="may lead out of the artifact's folder"):
        find(storage, "d", DatasetManifest)


@pytest.mark.parametrize("path", ["a", ".a", "...", "..a/b..", "a [b]/c:d", "\u00fc"])
def test_a_path_may_have_any_name_inside_the_artifact(storage: Storage, path: str) -> None:
    edit(storage, files=[{"path": path, "bytes": 0, "sha256": "0" * 64}])
    assert load(storage, "d", DatasetManifest).files[0].path == path


@pytest.mark.parametrize(
    "fields", [{"path": "manifest.json"}, {"path": "evaluation.json"}, {"bytes": -1}, {"rows": -5}]
)
def test_entries_of_files_are_checked(storage: Storage, fields: dict[str, Any]) -> None:
    edit(storage, files=[{"path": "a", "bytes": 0, "sha256": "0" * 64} | fields])
    with pytest.raises(ArtifactDamaged, match=r"is not a valid manifest: files\.0"):
        find(storage, "d", DatasetManifest)


@pytest.mark.parametrize(
    "fields", [{"name": "../x"}, {"name": "a/b"}, {"version": "0"}, {"version": "../../models"}]
)
def test_names_and_versions_match_their_patterns(storage: Storage, fields: dict[str, str]) -> None:
    edit(storage, **fields)
    with pytest.raises(ArtifactDamaged, match="should match pattern"):
        find(storage, "d", DatasetManifest)


@pytest.mark.parametrize("kind", OLD_MANIFESTS)
def test_manifests_of_version_0_1_0_are_read(storage: Storage, kind: type[Manifest]) -> None:
    storage.write(f"old/{kind.file_name}", json.dumps(OLD_MANIFESTS[kind]).encode())
    manifest = load(storage, "old", kind)
    commit(storage, "new", manifest)
    assert load(storage, "new", kind) == manifest


COUNTS = st.integers(0, 2**63)
PATHS = st.from_regex(r"[\w .-]{0,9}\w(/\w[\w .-]{0,9})*", fullmatch=True)
NAMES = st.from_regex(NAME, fullmatch=True)
VERSIONS = st.from_regex(VERSION_DIGITS, fullmatch=True)
REFS = st.builds("{}/{}".format, NAMES, VERSIONS)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
ENTRIES = st.builds(FileEntry, path=PATHS, bytes=COUNTS, sha256=DIGESTS, rows=st.none() | COUNTS)
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
        name=NAMES,
        version=VERSIONS,
        rows=st.dictionaries(st.text(), COUNTS),
        source=st.dictionaries(st.text(), st.text()),
        **COMMON,
    ),
    st.builds(
        ScoresManifest,
        model=REFS,
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
