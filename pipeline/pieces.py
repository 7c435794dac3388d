"""Row ranges -> shards, by Ray Data: what preprocessing and scoring share.

Ray Data carries ranges, not rows. A task reads its ranges and writes the shard of each whole or
not at all, under a name that the range decides. So a task that is tried again changes nothing, a
command that was killed goes on where it was, and memory does not grow with the data.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from pipeline import cluster
from pipeline.console import progress, say
from pipeline.contract import SettingError
from pipeline.manifest import FileEntry, describe, write_file
from pipeline.rows import Bad, Block, Rows
from pipeline.shards import to_parquet
from pipeline.storage import Storage

MAX_PIECES_A_TASK, TASKS_A_CPU = 64, 8

MAX_PIECES = 100_000
"""Five digits number them in their names, and the driver holds all."""

MAX_PIECE_PIXELS = 1 << 30
"""A worker holds a piece in memory, more than once."""

REJECTED = "rejected/"
"""Where the side files lie: of rows that were left out, `id` int64 and `reason`."""


class Piece(NamedTuple):
    """A range of rows of a split or input, which becomes the shard at `path`."""

    path: str
    split: str
    rows: Rows
    start: int
    num_rows: int

    def read(self, columns: Sequence[str] = ()) -> Block:
        return self.rows.read(self.start, self.start + self.num_rows, columns)

    @property
    def side_path(self) -> str:
        return REJECTED + self.path.replace("/", "-")


class Made(NamedTuple):
    """The shard of a piece, its rows, and those that were left out."""

    shard: pa.Buffer
    rows: int
    bad: Sequence[Bad]


class Target(NamedTuple):
    """The folder of the shards; `force` makes those again that are there."""

    storage: Storage
    folder: str
    force: bool

    def write(self, pieces: Sequence[Piece], make: Callable[[Piece], Made]) -> list[dict[str, Any]]:
        """The entries of the files of each piece, and whether they were made for it."""
        stored = list[Future[dict[str, Any]]]()
        with ThreadPoolExecutor(1) as disk:
            for piece in pieces:
                there = None if self.force else self._finished(piece)
                made = make(piece) if there is None else None
                # While this one was made, the one before was on its way to the disk.
                for before in stored[-1:]:
                    before.result()
                stored.append(disk.submit(self._store, piece, there, made))
        return [future.result() for future in stored]

    def _store(
        self, piece: Piece, there: list[FileEntry] | None, made: Made | None
    ) -> dict[str, Any]:
        entries = there or []
        if made:
            assert made.rows + len(made.bad) == piece.num_rows
            # Else what was made of other content would be taken for finished, under this name.
            piece.rows.require_unchanged()
            # Before the shard: where that is, the piece is finished.
            if made.bad:
                entries.append(self._put(piece.side_path, _table(made.bad), len(made.bad)))
            entries.append(self._put(piece.path, made.shard, made.rows))
        return {"entries": [entry.model_dump() for entry in entries], "made": made is not None}

    def _put(self, path: str, data: pa.Buffer, rows: int) -> FileEntry:
        return write_file(self.storage, self.folder, path, data, rows=rows)

    def _finished(self, piece: Piece) -> list[FileEntry] | None:
        """What an attempt before left of this piece, where it is all of it.

        The names decide the content, and files appear whole.
        """
        if (shard := self._there(piece.path)) is None:
            return None
        found = [shard]
        if shard.rows != piece.num_rows and (side := self._there(piece.side_path)):
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
        return describe(path, data, rows=rows)


def cut(
    rows: Rows, start: int, stop: int, *, split: str, path: str, rows_per_shard: int
) -> list[Piece]:
    """The pieces of a range of rows; `path` is a format of their numbers.

    Raises SettingError where one would be too large for memory, or where they would be too many.
    """
    name = rows.parts[0].storage.name(rows.parts[0].entry.path)
    pixels, num_rows = prod(rows.shape), stop - start
    if num_rows > MAX_PIECES * rows_per_shard:
        raise SettingError(
            f"{name} and what follows it have {num_rows:,} rows: at {rows_per_shard:,} a shard "
            f"these are more than {MAX_PIECES:,} shards. If that is right, give a "
            "larger rows-per-shard."
        )
    if min(rows_per_shard, num_rows) * pixels > MAX_PIECE_PIXELS:
        raise SettingError(
            f"{name} has images of {' x '.join(map(str, rows.shape))}: a worker would hold "
            f"{rows_per_shard:,} of them, a shard, in memory. Give a "
            f"rows-per-shard of {max(1, MAX_PIECE_PIXELS // pixels):,} or less."
        )
    pieces = []
    for number, begin in enumerate(range(start, stop, rows_per_shard)):
        size = min(rows_per_shard, stop - begin)
        pieces.append(Piece(path.format(number), split, *rows.narrowed(begin, begin + size), size))
    return pieces


def over(pieces: Sequence[Piece], task: Any, **options: Any) -> Iterator[dict[str, Any]]:
    """What the task returns for each piece, in their order; `options` are those of Ray Data's map.

    A task of Ray takes 30 ms besides its work, so each gets several pieces where there are many.
    """
    size = min(MAX_PIECES_A_TASK, max(1, len(pieces) // (TASKS_A_CPU * cluster.num_free_cpus())))
    groups = [pieces[start : start + size] for start in range(0, len(pieces), size)]
    items = [{"pieces": pickle.dumps(group)} for group in groups]
    if not items:
        return iter(())
    work = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(task, **options)
    work.context.execution_options.preserve_order = True
    return cluster.results(work)


def unpacked(item: dict[str, Any]) -> list[Piece]:
    """The pieces that a task was handed."""
    pieces: list[Piece] = pickle.loads(item["pieces"])
    return pieces


def make(pieces: Sequence[Piece], task: Any, title: str, **options: Any) -> tuple[FileEntry, ...]:
    """The entries of the files of all pieces, by path; `task` returns what Target.write does."""
    entries, kept, done = list[FileEntry](), 0, 0
    with progress(title, total=sum(piece.num_rows for piece in pieces)) as show:
        for found in over(pieces, task, **options):
            kept += not found["made"]
            new = [FileEntry(**entry) for entry in found["entries"]]
            entries += new
            done += sum(entry.rows or 0 for entry in new)
            show(done, "rows")
    if kept:
        say(f"{kept} of {len(pieces)} shards were there already")
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _table(bad: Sequence[Bad]) -> pa.Buffer:
    ids = pa.array([row.id for row in bad], pa.int64())
    reasons = pa.array([row.reason for row in bad], pa.string())
    return to_parquet(pa.table({"id": ids, "reason": reasons}))
