"""Shards written by tasks of Ray Data. Preprocessing and scoring share this.

Ray Data carries numbers of shards, not rows. A task reads the rows of its shards and writes each
file atomically, under a name with its number and the digest of its content. So a retried task
changes nothing, a killed command continues with the files whose content is what their names say,
and memory does not grow with the data.
"""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.exceptions import RayTaskError

from pipeline.artifacts.commit import write_file
from pipeline.artifacts.manifests import FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.cluster import resources
from pipeline.console import progress, say
from pipeline.data.plan import Plan
from pipeline.data.readers.rows import RejectedRow
from pipeline.data.shards import encode_parquet
from pipeline.errors import UserError

MAX_SHARDS_PER_TASK = 64
"""A Ray task costs 30 ms besides its work. So many shards make that negligible."""

TASKS_PER_CPU = 8
"""With fewer tasks, CPUs would be idle at the end while the last tasks run."""

REJECTED = "rejected/"
"""The folder of files that list rejected rows: `id` int64, `reason` string."""

_FILE_NAME = re.compile(r"(.+)-(\d+)-([0-9a-f]{12})\.parquet")


class EncodedShards(NamedTuple):
    """The Parquet files of a shard's rows by their folder and stem, and the rejected rows.

    Each file has its number of rows. `result` is what the task returns besides, pickled.
    """

    files: Mapping[str, tuple[pa.Buffer, int]]
    rejects: Sequence[RejectedRow]
    result: bytes = b""


class ShardWriter(NamedTuple):
    """A writer of the shards of a plan into a folder.

    `stems` are the folders and stems of its files; the last is that of the rejects. `existing` are
    the files of earlier attempts, by number.
    """

    storage: Storage
    folder: str
    plan: Plan
    stems: Sequence[str]
    existing: Mapping[int, Sequence[str]]

    def write(
        self,
        numbers: Sequence[int],
        encode: Callable[[int], EncodedShards],
        restore: Callable[[Mapping[str, bytes]], bytes] = lambda _: b"",
    ) -> list[dict[str, Any]]:
        """Write the files of each shard, unless they exist already.

        `encode` makes them; `restore` returns the `result` of files that exist, given their content
        by stem. Return a dict per shard: the `entries` of its files, its `result`, and whether it
        was `encoded` now. A thread writes the files of a shard while the next one is encoded.
        """
        stored = list[Future[dict[str, Any]]]()
        with ThreadPoolExecutor(1) as disk:
            for number in numbers:
                existing = self._existing(number)
                if existing is not None:
                    entries, contents = existing
                    finished = {
                        "entries": [entry.model_dump() for entry in entries],
                        "encoded": False,
                        "result": restore(contents),
                    }
                    stored.append(disk.submit(dict, finished))
                    continue
                encoded = encode(number)
                # Wait for the previous shard: an error ends the task now, and no more than two
                # shards are in memory.
                if stored:
                    stored[-1].result()
                stored.append(disk.submit(self._store, number, encoded))
        return [future.result() for future in stored]

    def _store(self, number: int, encoded: EncodedShards) -> dict[str, Any]:
        """Write the files of a shard and return what `write` does."""
        rows = sum(rows for _, rows in encoded.files.values()) + len(encoded.rejects)
        assert rows == self.plan.shard_rows(number)
        # Otherwise a shard built from changed input would be kept as finished.
        self.plan.rows.require_unchanged(self.plan.ranges(number))
        files = dict(encoded.files)
        if encoded.rejects:
            files[self.stems[-1]] = _rejects_parquet(encoded.rejects), len(encoded.rejects)
        entries = [
            write_file(self.storage, self.folder, self._path(stem, number, data), data, rows=rows)
            for stem, (data, rows) in files.items()
        ]
        dumped = [entry.model_dump() for entry in entries]
        return {"entries": dumped, "encoded": True, "result": encoded.result}

    def _path(self, stem: str, number: int, data: pa.Buffer) -> str:
        width = max(5, len(str(self.plan.num_shards)))
        return f"{stem}-{number:0{width}}-{hashlib.sha256(data).hexdigest()[:12]}.parquet"

    def _existing(self, number: int) -> tuple[list[FileEntry], dict[str, bytes]] | None:
        """Return the files that an earlier attempt wrote, or None if they are not complete."""
        entries = list[FileEntry]()
        contents = dict[str, bytes]()
        for path in self.existing.get(number, ()):
            stem, _, digest = parse_path(path) or ("", 0, "")
            try:
                content = self.storage.read(f"{self.folder}/{path}".lstrip("/"))
                sha256 = hashlib.sha256(content).hexdigest()
                if not sha256.startswith(digest):
                    return None
                rows = pq.ParquetFile(pa.BufferReader(content)).metadata.num_rows
            except (FileNotFoundError, OSError, ValueError, pa.ArrowException):
                return None
            entries.append(FileEntry(path=path, bytes=len(content), sha256=sha256, rows=rows))
            contents[stem] = content
        total = sum(entry.rows or 0 for entry in entries)
        complete = len(contents) == len(entries) and total == self.plan.shard_rows(number)
        return (entries, contents) if complete else None


def parse_path(path: str) -> tuple[str, int, str] | None:
    """Return the stem, the number and the digest in the path of a shard; None for other paths."""
    match = _FILE_NAME.fullmatch(path)
    return (match[1], int(match[2]), match[3]) if match else None


def find_existing(storage: Storage, folder: str, stems: Sequence[str]) -> dict[int, list[str]]:
    """Return the files that earlier attempts wrote under these stems, by number."""
    existing = dict[int, list[str]]()
    start = len(folder) + 1 if folder else 0
    for path in storage.files(folder):
        name = parse_path(path[start:])
        if name and name[0] in stems:
            existing.setdefault(name[1], []).append(path[start:])
    return existing


def map_shards(plan: Plan, task: Any, **options: Any) -> Iterator[dict[str, Any]]:
    """Run a task over the numbers of all shards; return what it returns for each, in order.

    `task` is a function or an actor class for `flat_map`: it gets an item with the `numbers` of
    some shards and returns a dict per shard. `options` are those of `flat_map`.
    """
    num_tasks = TASKS_PER_CPU * resources.num_free_cpus()
    size = min(MAX_SHARDS_PER_TASK, max(1, plan.num_shards // num_tasks))
    items = [
        {"numbers": list(range(start, min(start + size, plan.num_shards)))}
        for start in range(0, plan.num_shards, size)
    ]
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


def write_shards(
    plan: Plan, task: Any, title: str, **options: Any
) -> Iterator[tuple[list[FileEntry], bool, bytes]]:
    """Run a task that returns what `ShardWriter.write` does; yield it for each shard, in order."""
    num_kept = 0
    num_written = 0
    with progress(title, total=plan.num_rows) as show:
        for result in map_shards(plan, task, **options):
            num_kept += not result["encoded"]
            entries = [FileEntry(**entry) for entry in result["entries"]]
            num_written += sum(entry.rows or 0 for entry in entries)
            show(num_written, "rows")
            yield entries, result["encoded"], result["result"]
    if num_kept:
        say(f"{num_kept} of {plan.num_shards} shards already exist")


def _rejects_parquet(rejects: Sequence[RejectedRow]) -> pa.Buffer:
    ids = pa.array([row.id for row in rejects], pa.int64())
    reasons = pa.array([row.reason for row in rejects], pa.string())
    return encode_parquet(pa.table({"id": ids, "reason": reasons}))
