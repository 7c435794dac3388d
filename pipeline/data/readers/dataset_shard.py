"""A reader of a shard of a dataset, which is verified as it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.commit import read_file
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Fingerprint, Storage
from pipeline.contract import ImageSpec
from pipeline.data.readers.rows import Ranges, RowBatch
from pipeline.data.shards import pixels
from pipeline.errors import DataError


@dataclass(frozen=True)
class ShardReader:
    """A reader of a shard in a folder of a dataset. A read decodes it whole, in memory."""

    storage: Storage
    folder: str
    listed: FileEntry
    image: ImageSpec
    fingerprint: Fingerprint

    max_runs = 1

    @property
    def entry(self) -> FileEntry:
        return replace(self.listed, path=f"{self.folder}/{self.listed.path}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.shape

    @property
    def bytes_per_row(self) -> int:
        return self.image.num_pixels

    def is_unchanged(self, ranges: Ranges) -> bool:
        return self.storage.fingerprint(self.entry.path) == self.fingerprint

    def read(self, begin: int, end: int, first_id: int, columns: Sequence[str]) -> RowBatch:
        """See `Reader.read`. Raise ArtifactDamaged if the file is not the one of the manifest."""
        rows = _read_table(self.storage, self.folder, self.listed).slice(begin, end - begin)
        for name in columns:
            if name not in rows.column_names:
                raise DataError(f"{self.storage.display(self.entry.path)} has no column {name!r}.")
        images = pixels(rows["image"], self.image)
        return RowBatch(rows["id"].to_numpy(), images, columns=rows.select(list(columns)))


@lru_cache(maxsize=1)
def _read_table(storage: Storage, folder: str, entry: FileEntry) -> pa.Table:
    content = read_file(storage, folder, entry)
    return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False).combine_chunks()
