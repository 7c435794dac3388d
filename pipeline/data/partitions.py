"""Partitions: ranges of rows that become shards, by Ray Data. Preprocessing and scoring share this.

Ray Data carries ranges, not rows. A task reads the rows of its partitions and writes each shard
atomically under a name that depends only on the range. So a retried task changes nothing, a killed
command continues where it stopped, and memory does not grow with the data.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.exceptions import RayTaskError

from pipeline.artifacts.commit import file_entry, write_file
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.cluster import resources
from pipeline.console import progress, say
from pipeline.data.readers.rows import RejectedRow, RowBatch, Rows
from pipeline.data.shards import encode_parquet
from pipeline.errors import SettingError, UserError

MAX_PARTITIONS_PER_TASK = 64
"""A Ray task costs 30 ms besides its work. So many partitions make that negligible."""

TASKS_PER_CPU = 8
"""With fewer tasks, CPUs would be idle at the end while the last tasks run."""

MAX_PARTITIONS = 100_000
"""Names of shards number partitions with five digits, and the driver holds all partitions."""

MAX_PARTITION_PIXELS = 1 << 30
"""A worker holds the images of a partition in memory (1 GiB), more than once."""

REJECTED = "rejected/"
"""The folder of files that list rejected rows: `id` int64, `reason` string."""


class Partition(NamedTuple):
    """A range of rows of a split or scoring input, which becomes the shard at `path`."""

    path: str
    split: str
    rows: Rows
    start: int
    num_rows: int

    def read(self, columns: Sequence[str] = ()) -> RowBatch:
        """Return the rows, with these additional columns."""
        return self.rows.read(self.start, self.start + self.num_rows, columns)

    @property
    def rejects_path(self) -> str:
        return REJECTED + self.path.replace("/", "-")


class EncodedShard(NamedTuple):
    """The Parquet file of a partition, its number of rows, and the rejected rows."""

    shard: pa.Buffer
    rows: int
    rejects: Sequence[RejectedRow]


class ShardWriter(NamedTuple):
    """A writer of shards into a folder; `force` replaces existing ones."""

    storage: Storage
    folder: str
    force: bool

    def write(
        self, partitions: Sequence[Partition], encode: Callable[[Partition], EncodedShard]
    ) -> list[dict[str, Any]]:
        """Write the shard of each partition, unless it already exists.

        Return a dict per partition: the `entries` of its files, and whether it was `encoded` now.
        A thread writes each shard while the next one is encoded.
        """
        stored = list[Future[dict[str, Any]]]()
        with ThreadPoolExecutor(1) as disk:
            for partition in partitions:
                existing = None if self.force else self._existing_entries(partition)
                encoded = encode(partition) if existing is None else None
                # Wait for the previous shard: an error ends the task now, and no more than two
                # shards are in memory.
                if stored:
                    stored[-1].result()
                stored.append(disk.submit(self._store, partition, existing, encoded))
        return [future.result() for future in stored]

    def _store(
        self,
        partition: Partition,
        existing: list[FileEntry] | None,
        encoded: EncodedShard | None,
    ) -> dict[str, Any]:
        entries = existing or []
        if encoded:
            entries = self._store_encoded(partition, encoded)
        dumped = [entry.model_dump() for entry in entries]
        return {"entries": dumped, "encoded": encoded is not None}

    def _store_encoded(self, partition: Partition, encoded: EncodedShard) -> list[FileEntry]:
        """Write the files of a partition and return their entries."""
        rejects = encoded.rejects
        assert encoded.rows + len(rejects) == partition.num_rows
        # Otherwise a shard built from changed input would be kept as finished.
        partition.rows.require_unchanged()
        entries = []
        # Write rejects first: the shard's presence marks the partition as done.
        if rejects:
            file = _rejects_parquet(rejects)
            entries.append(self._write_file(partition.rejects_path, file, len(rejects)))
        entries.append(self._write_file(partition.path, encoded.shard, encoded.rows))
        return entries

    def _write_file(self, path: str, file: pa.Buffer, rows: int) -> FileEntry:
        return write_file(self.storage, self.folder, path, file, rows=rows)

    def _existing_entries(self, partition: Partition) -> list[FileEntry] | None:
        """Return the files that an earlier attempt wrote, or None if they are not complete.

        Their content needs no check: names depend on the input, and files are written atomically.
        """
        shard = self._existing_file(partition.path)
        if shard is None:
            return None
        entries = [shard]
        if shard.rows != partition.num_rows:
            rejects = self._existing_file(partition.rejects_path)
            if rejects:
                entries.append(rejects)
        num_rows = sum(entry.rows or 0 for entry in entries)
        return entries if num_rows == partition.num_rows else None

    def _existing_file(self, path: str) -> FileEntry | None:
        """Return the entry of an existing Parquet file, or None if it is missing or damaged."""
        try:
            content = self.storage.read(f"{self.folder}/{path}".lstrip("/"))
        except FileNotFoundError:
            return None
        try:
            rows = pq.ParquetFile(pa.BufferReader(content)).metadata.num_rows
        except (OSError, ValueError, pa.ArrowException):
            return None
        return file_entry(path, content, rows=rows)


def partition_rows(
    rows: Rows, start: int, stop: int, *, split: str, path: str, rows_per_shard: int
) -> list[Partition]:
    """Return the partitions of rows start..stop; `path` is a format string for their numbers.

    Raise SettingError if one would not fit into memory, or if they would be too many.
    """
    first = rows.readers[0]
    name = first.storage.display(first.entry.path)
    pixels = prod(rows.shape)
    num_rows = stop - start
    if num_rows > MAX_PARTITIONS * rows_per_shard:
        raise SettingError(
            f"{name} and the files after it have {num_rows:,} rows. With {rows_per_shard:,} rows "
            f"per shard that makes more than {MAX_PARTITIONS:,} shards. If the number of rows is "
            "right, give a larger rows-per-shard."
        )
    if min(rows_per_shard, num_rows) * pixels > MAX_PARTITION_PIXELS:
        raise SettingError(
            f"{name} has images of {' x '.join(map(str, rows.shape))}: a worker would hold "
            f"{rows_per_shard:,} of them, a shard, in memory. Give a "
            f"rows-per-shard of {max(1, MAX_PARTITION_PIXELS // pixels):,} or less."
        )
    partitions = []
    for number, begin in enumerate(range(start, stop, rows_per_shard)):
        size = min(rows_per_shard, stop - begin)
        readers, offset = rows.slice(begin, begin + size)
        partitions.append(Partition(path.format(number), split, readers, offset, size))
    return partitions


def map_partitions(
    partitions: Sequence[Partition], task: Any, **options: Any
) -> Iterator[dict[str, Any]]:
    """Run a task over all partitions; return what it returns for each partition, in order.

    `task` is a function or an actor class for `flat_map`: it gets an item with several partitions
    (see `unpack`) and returns a dict per partition. `options` are those of `flat_map`.
    """
    num_tasks = TASKS_PER_CPU * resources.num_free_cpus()
    size = min(MAX_PARTITIONS_PER_TASK, max(1, len(partitions) // num_tasks))
    groups = [partitions[start : start + size] for start in range(0, len(partitions), size)]
    items = [{"partitions": pickle.dumps(group)} for group in groups]
    if not items:
        return iter(())
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Otherwise Ray wraps the task's exception, and `_iter_results` would not see a UserError.
    context.raise_original_map_exception = True
    # One item per block, so one item per task.
    results = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(task, **options)
    results.context.execution_options.preserve_order = True
    return _iter_results(results)


def _iter_results(results: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset as they are computed; raise a UserError of a task as itself."""
    failure = None
    try:
        yield from results.iter_rows()
    except RayTaskError as error:
        if not isinstance(error.cause, UserError):
            raise
        failure = error.cause
    if failure:
        # Free Ray's frames before raising: a kept traceback keeps actors, and so CPUs, alive. Some
        # are in cycles, hence `gc.collect()`.
        del results
        gc.collect()
        raise failure


def unpack(item: dict[str, Any]) -> list[Partition]:
    """Return the partitions of a task's item."""
    partitions: list[Partition] = pickle.loads(item["partitions"])
    return partitions


def write_shards(
    partitions: Sequence[Partition], task: Any, title: str, **options: Any
) -> tuple[FileEntry, ...]:
    """Run a task that returns what `ShardWriter.write` does, over all partitions.

    Return the entries of all files, in order of paths.
    """
    entries = list[FileEntry]()
    num_kept = 0
    num_written = 0
    with progress(title, total=sum(partition.num_rows for partition in partitions)) as show:
        for result in map_partitions(partitions, task, **options):
            num_kept += not result["encoded"]
            new_entries = [FileEntry(**entry) for entry in result["entries"]]
            entries += new_entries
            num_written += sum(entry.rows or 0 for entry in new_entries)
            show(num_written, "rows")
    if num_kept:
        say(f"{num_kept} of {len(partitions)} shards already exist")
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _rejects_parquet(rejects: Sequence[RejectedRow]) -> pa.Buffer:
    ids = pa.array([row.id for row in rejects], pa.int64())
    reasons = pa.array([row.reason for row in rejects], pa.string())
    return encode_parquet(pa.table({"id": ids, "reason": reasons}))
