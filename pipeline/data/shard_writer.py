"""Shards written from blocks, by the commit protocol: `ShardWriter`.

Each file is written atomically, under a name with its number and the digest of its content. So a
retried task changes nothing, and a killed command continues with the files whose content is what
their names say.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.commit import file_entry
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.data.readers.rows import RejectedRow
from pipeline.data.shards import encode_parquet

REJECTED = "rejected/"
"""The folder of files that list rejected rows: `id` int64, `reason` string."""

MAX_WAITING = 2
"""Encoded files that wait to be written."""

_FILE_NAME = re.compile(r"(.+)-(\d+)-([0-9a-f]{12})\.parquet")


class Shard(NamedTuple):
    """The valid rows of a shard by split, and the rejected ones."""

    number: int
    rows: Mapping[str, pa.Table]
    rejects: Sequence[RejectedRow]


class ShardWriter(ABC):
    """A writer of the shards of blocks into a folder.

    `stems` are the folders and stems of the files of each split; `rejected_stem` is that of the
    lists of rejected rows.
    """

    keep_empty = False
    """Whether shards without a valid row are written too."""

    def __init__(
        self,
        storage: Storage,
        folder: str,
        stems: Mapping[str, str],
        rejected_stem: str,
        num_shards: int,
    ) -> None:
        self.storage, self.folder = storage, folder
        self.stems, self.rejected_stem = stems, REJECTED + rejected_stem
        self.width = max(5, len(str(num_shards)))

    @abstractmethod
    def encode(self, rows: pa.Table) -> pa.Buffer:
        """Return the file of the valid rows of a shard and a split."""

    def write(self, shards: Iterable[Shard]) -> list[FileEntry]:
        """Write shards, and return the entries of their files.

        A thread writes a file while the next one is encoded.
        """
        writes = list[Future[FileEntry]]()
        with ThreadPoolExecutor(1) as disk:
            for shard in shards:
                for stem, content, rows in self._encode_files(shard):
                    # An error ends the task now, and few files are in memory.
                    if len(writes) >= MAX_WAITING:
                        writes[-MAX_WAITING].result()
                    writes.append(disk.submit(self._store, stem, shard.number, content, rows))
        return [write.result() for write in writes]

    def _encode_files(self, shard: Shard) -> Iterator[tuple[str, pa.Buffer, int]]:
        """Yield the stem, the content and the number of rows of each file of a shard."""
        for split, rows in shard.rows.items():
            if len(rows) or self.keep_empty:
                yield self.stems[split], self.encode(rows), len(rows)
        if shard.rejects:
            yield self.rejected_stem, _encode_rejects(shard.rejects), len(shard.rejects)

    def _store(self, stem: str, number: int, content: pa.Buffer, rows: int) -> FileEntry:
        entry = file_entry("", content, rows=rows)
        path = f"{stem}-{number:0{self.width}}-{entry.sha256[:12]}.parquet"
        self.storage.write(f"{self.folder}/{path}".lstrip("/"), content)
        return replace(entry, path=path)

    def describe(self, existing: ExistingShard) -> object:
        """Return what the driver needs of a shard that an earlier attempt wrote."""
        return existing.entries

    def find_existing(self) -> dict[int, list[str]]:
        """Return the files that earlier attempts wrote, by number."""
        existing = dict[int, list[str]]()
        start = len(self.folder) + 1 if self.folder else 0
        stems = {*self.stems.values(), self.rejected_stem}
        for path in self.storage.files(self.folder):
            match = _FILE_NAME.fullmatch(path[start:])
            if match and match[1] in stems:
                existing.setdefault(int(match[2]), []).append(path[start:])
        return existing

    def read_existing(self, paths: Sequence[str], num_rows: int) -> ExistingShard | None:
        """Return a shard that an earlier attempt wrote, or None if it is not complete.

        Its files must have the content that their names say, and `num_rows` in all.
        """
        entries = list[FileEntry]()
        contents = dict[str, bytes]()
        for path in paths:
            match = _FILE_NAME.fullmatch(path)
            assert match
            try:
                content = self.storage.read(f"{self.folder}/{path}".lstrip("/"))
                sha256 = hashlib.sha256(content).hexdigest()
                if not sha256.startswith(match[3]):
                    return None
                rows = pq.ParquetFile(pa.BufferReader(content)).metadata.num_rows
            except (FileNotFoundError, OSError, ValueError, pa.ArrowException):
                return None
            entries.append(FileEntry(path=path, bytes=len(content), sha256=sha256, rows=rows))
            contents[match[1]] = content
        complete = len(contents) == len(entries)
        if not complete or sum(entry.rows or 0 for entry in entries) != num_rows:
            return None
        rejects = _decode_rejects(contents.pop(self.rejected_stem, None))
        splits = {split: contents[stem] for split, stem in self.stems.items() if stem in contents}
        return ExistingShard(entries, splits, rejects)


class ExistingShard(NamedTuple):
    """The entries of a shard's files, their contents by split, and the rejected rows."""

    entries: Sequence[FileEntry]
    contents: Mapping[str, bytes]
    rejects: Sequence[RejectedRow]


def _encode_rejects(rejects: Sequence[RejectedRow]) -> pa.Buffer:
    ids = pa.array([row.id for row in rejects], pa.int64())
    reasons = pa.array([row.reason for row in rejects], pa.string())
    return encode_parquet(pa.table({"id": ids, "reason": reasons}))


def _decode_rejects(content: bytes | None) -> list[RejectedRow]:
    if content is None:
        return []
    table = pq.read_table(pa.BufferReader(content), use_threads=False)
    rows: list[dict[str, Any]] = table.to_pylist()
    return [RejectedRow(**row) for row in rows]
