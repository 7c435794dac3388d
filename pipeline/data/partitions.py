"""Row ranges -> shards, by Ray Data: what preprocessing and scoring share.

Ray Data carries ranges, not rows. A task reads its ranges and writes the shard of each whole or
not at all, under a name that the range decides. So a task that is tried again changes nothing, a
command that was killed goes on where it was, and memory does not grow with the data.
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

MAX_PARTITIONS_PER_TASK, TASKS_PER_CPU = 64, 8

MAX_PARTITIONS = 100_000
"""Five digits number them in their names, and the driver holds all."""

MAX_PARTITION_PIXELS = 1 << 30
"""A worker holds a piece in memory, more than once."""

REJECTED = "rejected/"
"""Where the side files lie: of rows that were left out, `id` int64 and `reason`."""


class Partition(NamedTuple):
    """A range of rows of a split or input, which becomes the shard at `path`."""

    path: str
    split: str
    rows: Rows
    start: int
    num_rows: int

    def read(self, columns: Sequence[str] = ()) -> RowBatch:
        return self.rows.read(self.start, self.start + self.num_rows, columns)

    @property
    def rejects_path(self) -> str:
        return REJECTED + self.path.replace("/", "-")


class EncodedShard(NamedTuple):
    """The shard of a piece, its rows, and those that were left out."""

    shard: pa.Buffer
    rows: int
    bad: Sequence[RejectedRow]


class ShardWriter(NamedTuple):
    """The folder of the shards; `force` makes those again that are there."""

    storage: Storage
    folder: str
    force: bool

    def write(
        self, pieces: Sequence[Partition], encode: Callable[[Partition], EncodedShard]
    ) -> list[dict[str, Any]]:
        """The entries of the files of each piece, and whether they were made for it."""
        stored = list[Future[dict[str, Any]]]()
        with ThreadPoolExecutor(1) as disk:
            for piece in pieces:
                there = None if self.force else self._finished(piece)
                made = encode(piece) if there is None else None
                # While this one was made, the one before was on its way to the disk.
                for before in stored[-1:]:
                    before.result()
                stored.append(disk.submit(self._store, piece, there, made))
        return [future.result() for future in stored]

    def _store(
        self, piece: Partition, there: list[FileEntry] | None, made: EncodedShard | None
    ) -> dict[str, Any]:
        entries = there or []
        if made:
            assert made.rows + len(made.bad) == piece.num_rows
            # Else what was made of other content would be taken for finished, under this name.
            piece.rows.require_unchanged()
            # Before the shard: where that is, the piece is finished.
            if made.bad:
                entries.append(
                    self._put(piece.rejects_path, _rejects_parquet(made.bad), len(made.bad))
                )
            entries.append(self._put(piece.path, made.shard, made.rows))
        return {"entries": [entry.model_dump() for entry in entries], "made": made is not None}

    def _put(self, path: str, data: pa.Buffer, rows: int) -> FileEntry:
        return write_file(self.storage, self.folder, path, data, rows=rows)

    def _finished(self, piece: Partition) -> list[FileEntry] | None:
        """What an attempt before left of this piece, where it is all of it.

        The names decide the content, and files appear whole.
        """
        if (shard := self._there(piece.path)) is None:
            return None
        found = [shard]
        if shard.rows != piece.num_rows and (side := self._there(piece.rejects_path)):
            found.append(side)
        return found if sum(entry.rows or 0 for entry in found) == piece.num_rows else None

    def _there(self, path: str) -> FileEntry | None:
        try:
            data = self.storage.read(f"{self.folder}/{path}".lstrip("/"))
        except FileNotFoundError:
            return None
        try:
            rows = pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows
        except (OSError, ValueError, pa.ArrowException):
            return None
        return file_entry(path, data, rows=rows)


def partition_rows(
    rows: Rows, start: int, stop: int, *, split: str, path: str, rows_per_shard: int
) -> list[Partition]:
    """The pieces of a range of rows; `path` is a format of their numbers.

    Raises SettingError where one would be too large for memory, or where they would be too many.
    """
    name = rows.parts[0].storage.display(rows.parts[0].entry.path)
    pixels, num_rows = prod(rows.shape), stop - start
    if num_rows > MAX_PARTITIONS * rows_per_shard:
        raise SettingError(
            f"{name} and what follows it have {num_rows:,} rows: at {rows_per_shard:,} a shard "
            f"these are more than {MAX_PARTITIONS:,} shards. If that is right, give a "
            "larger rows-per-shard."
        )
    if min(rows_per_shard, num_rows) * pixels > MAX_PARTITION_PIXELS:
        raise SettingError(
            f"{name} has images of {' x '.join(map(str, rows.shape))}: a worker would hold "
            f"{rows_per_shard:,} of them, a shard, in memory. Give a "
            f"rows-per-shard of {max(1, MAX_PARTITION_PIXELS // pixels):,} or less."
        )
    pieces = []
    for number, begin in enumerate(range(start, stop, rows_per_shard)):
        size = min(rows_per_shard, stop - begin)
        pieces.append(Partition(path.format(number), split, *rows.slice(begin, begin + size), size))
    return pieces


def map_partitions(
    pieces: Sequence[Partition], task: Any, **options: Any
) -> Iterator[dict[str, Any]]:
    """What the task returns for each piece, in their order; `options` are those of Ray Data's map.

    A task of Ray takes 30 ms besides its work, so each gets several pieces where there are many.
    """
    size = min(
        MAX_PARTITIONS_PER_TASK, max(1, len(pieces) // (TASKS_PER_CPU * resources.num_free_cpus()))
    )
    groups = [pieces[start : start + size] for start in range(0, len(pieces), size)]
    items = [{"pieces": pickle.dumps(group)} for group in groups]
    if not items:
        return iter(())
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    work = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(task, **options)
    work.context.execution_options.preserve_order = True
    return _iter_results(work)


def _iter_results(work: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The rows that Ray Data makes, as they come; a UserError of a task is raised as itself."""
    failure = None
    try:
        yield from work.iter_rows()
    except RayTaskError as error:
        if not isinstance(error.cause, UserError):
            raise
        failure = error.cause
    if failure:
        # Who keeps the error would else keep Ray's frames, and with them actors and their CPUs;
        # and some of those hold each other.
        del work
        gc.collect()
        raise failure


def unpack(item: dict[str, Any]) -> list[Partition]:
    """The pieces that a task was handed."""
    pieces: list[Partition] = pickle.loads(item["pieces"])
    return pieces


def write_shards(
    pieces: Sequence[Partition], task: Any, title: str, **options: Any
) -> tuple[FileEntry, ...]:
    """The entries of the files of all pieces, by path; `task` returns what Target.write does."""
    entries, kept, done = list[FileEntry](), 0, 0
    with progress(title, total=sum(piece.num_rows for piece in pieces)) as show:
        for found in map_partitions(pieces, task, **options):
            kept += not found["made"]
            new = [FileEntry(**entry) for entry in found["entries"]]
            entries += new
            done += sum(entry.rows or 0 for entry in new)
            show(done, "rows")
    if kept:
        say(f"{kept} of {len(pieces)} shards were there already")
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _rejects_parquet(bad: Sequence[RejectedRow]) -> pa.Buffer:
    ids = pa.array([row.id for row in bad], pa.int64())
    reasons = pa.array([row.reason for row in bad], pa.string())
    return encode_parquet(pa.table({"id": ids, "reason": reasons}))
