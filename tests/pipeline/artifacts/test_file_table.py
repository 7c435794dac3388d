"""Tables of entries, beside manifests of very many files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import file_table
from pipeline.artifacts.commit import MAX_LISTED, commit, find, load, write_file
from pipeline.artifacts.manifests import FileEntry, ScoresManifest
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec
from pipeline.errors import ArtifactDamaged

ENTRY: dict[str, Any] = {"path": "a", "bytes": 1, "sha256": "0" * 64, "rows": None}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def make(**fields: Any) -> ScoresManifest:
    return ScoresManifest(
        model="m/0123456789ab",
        image=ImageSpec(1, 1, ("a",)),
        probabilities=False,
        columns=(),
        rows_per_shard=1,
        rows=0,
        **{"inputs": (), **fields},
    )


def find_with_table(storage: Storage, content: bytes) -> ScoresManifest | None:
    """Read a manifest whose files are in a table of this content."""
    table = write_file(storage, "", "files.parquet", content)
    commit(storage, "", make())
    fields = json.loads(storage.read("manifest.json"))
    fields["tables"] = {"files": {name: getattr(table, name) for name in ENTRY}}
    storage.write("manifest.json", json.dumps(fields).encode())
    return find(storage, "", ScoresManifest)


def encode(row: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], file_table.SCHEMA), sink, compression="none")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def test_very_many_entries_are_found_again(storage: Storage) -> None:
    files = tuple(FileEntry(f"{n}", n, f"{n:064}", n or None) for n in range(MAX_LISTED + 1))
    inputs = tuple(FileEntry(f"odd\\{n}", n, f"{n:064}") for n in range(MAX_LISTED + 1))
    commit(storage, "", make(files=files, inputs=inputs))
    loaded = load(storage, "", ScoresManifest)
    assert (loaded.files, loaded.inputs) == (files, inputs)
    assert len(storage.read("manifest.json")) < 2000


@pytest.mark.parametrize(
    "fields",
    [
        {"path": None},
        {"path": "../a"},
        {"path": "manifest.json"},
        {"bytes": -1},
        {"bytes": None},
        {"sha256": "0"},
        {"rows": -1},
    ],
)
def test_entries_of_a_table_are_checked(storage: Storage, fields: dict[str, Any]) -> None:
    with pytest.raises(ArtifactDamaged, match=r"is not a valid manifest: 0"):
        find_with_table(storage, encode(ENTRY | fields))


@pytest.mark.parametrize("content", [b"", b"no table", encode(ENTRY).replace(b"\x15", b"\xff")])
def test_a_damaged_table_is_damage(storage: Storage, content: bytes) -> None:
    with pytest.raises(ArtifactDamaged, match="is not a valid manifest: the table could not be"):
        find_with_table(storage, content)


def test_a_table_with_other_columns_is_damage(storage: Storage) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), sink)
    with pytest.raises(ArtifactDamaged, match=r"the table has the columns \['x'\]"):
        find_with_table(storage, sink.getvalue().to_pybytes())
