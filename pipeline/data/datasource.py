"""The images of sources as Datasets of Ray: `read_images`, and the `Datasource` behind it.

A read task covers some shards of a plan. Ray Data runs the functions that follow by `map_batches`
in the same task, so images do not pass through the object store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Dataset, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipeline.cluster import resources
from pipeline.config import Data
from pipeline.data.blocks import to_block
from pipeline.data.plan import Plan
from pipeline.data.sources import open_source

TASK_BYTES = 64 << 20
"""Bytes of images in a task, unless a single shard has more."""

MAX_SHARDS_PER_TASK = 8
"""A task costs Ray 30 ms besides its work. So many shards make that negligible."""

TASKS_PER_CPU = 8
"""With fewer tasks, CPUs would be idle at the end while the last tasks run."""

BYTES_PER_ROW = 256
"""Bytes of a row besides its pixels: id, label, hash, and the overhead of columns."""

COPIES = 4
"""How often a task holds an image at once: as read, mixed, encoded, and in the source's file."""

PROCESS_BYTES = 256 << 20
"""Memory of a worker process before it reads."""


def read_images(data: Data | str, *, columns: Sequence[str] = ()) -> Dataset:
    """Return all images of a source, as the settings or a path name it, as a Dataset of Ray.

    Columns: `id` int64, `image` uint8 (height, width), `label` int64 (an index into the source's
    class names), `columns` of the source, and those of `blocks`: `_error` is the reason why a row
    cannot be used, or null.

    Ray is started as by `ray.init()` if it does not run. Raise the errors of `open_source`.
    """
    if not ray.is_initialized():
        ray.init()
    if isinstance(data, str):
        data = Data(name="images", source=data)
    source = open_source(data)
    tasks = [
        task
        for split, rows in source.splits.items()
        for task in plan_tasks(
            Plan(rows, 0, rows.num_rows, data.rows_per_shard), split, columns=columns
        )
    ]
    # No memory is reserved: Ray fuses operations that reserve the same, and others reserve none.
    return read_tasks(tasks, memory=None)


@dataclass(frozen=True)
class ShardTask:
    """The shards of a plan that a task reads, all of one split."""

    plan: Plan
    split: str
    numbers: Sequence[int]
    columns: Sequence[str] = ()

    @property
    def num_rows(self) -> int:
        return sum(self.plan.shard_rows(number) for number in self.numbers)


def plan_tasks(
    plan: Plan, split: str, *, columns: Sequence[str] = (), numbers: Sequence[int] | None = None
) -> list[ShardTask]:
    """Divide the shards of a plan, or those with these numbers, among tasks."""
    numbers = range(plan.num_shards) if numbers is None else numbers
    shard_bytes = max(1, min(plan.rows_per_shard, plan.num_rows) * _row_bytes(plan))
    num_tasks = TASKS_PER_CPU * resources.num_cpus()
    size = min(MAX_SHARDS_PER_TASK, TASK_BYTES // shard_bytes, len(numbers) // num_tasks)
    size = max(1, size)
    return [
        ShardTask(plan, split, numbers[start : start + size], columns)
        for start in range(0, len(numbers), size)
    ]


def read_tasks(tasks: Sequence[ShardTask], **remote_args: Any) -> Dataset:
    """Return the Dataset of these tasks, each of which reserves a CPU and the memory it needs.

    Raise ResourcesMissing if no node has that memory.
    """
    options = _reserved(tasks) | remote_args
    if options["memory"]:
        resources.require_memory(options["memory"], "a smaller rows-per-shard")
    dataset: Dataset = ray.data.read_datasource(
        ImageDatasource(tasks), override_num_blocks=len(tasks), **options
    )
    # A task returns its shards in one block; Ray would cut or join blocks to 128 MiB.
    dataset.context.target_max_block_size = None
    return dataset


def map_blocks(
    dataset: Dataset, function: Callable[..., Any], tasks: Sequence[ShardTask], **options: Any
) -> Dataset:
    """Apply a function, or an actor class, to the block of each task, in the task that reads it.

    `options` are those of `map_batches`. Ray fuses operations that reserve the same.
    """
    options = {"batch_size": None, "batch_format": "pyarrow", **_reserved(tasks), **options}
    return dataset.map_batches(function, **options)


def _reserved(tasks: Iterable[ShardTask]) -> dict[str, Any]:
    images = max((task.num_rows * _row_bytes(task.plan) for task in tasks), default=0)
    return {"num_cpus": 1, "memory": PROCESS_BYTES + COPIES * images}


class ImageDatasource(Datasource):
    """A Datasource whose read tasks read shards of plans."""

    def __init__(self, tasks: Sequence[ShardTask]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = tasks

    def get_name(self) -> str:
        return "Images"

    def estimate_inmemory_data_size(self) -> int:
        return sum(task.num_rows * _row_bytes(task.plan) for task in self._tasks)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """Return a read task for each task, however many are asked for."""
        plans = {id(task.plan): ray.put(task.plan) for task in self._unique_plans()}
        return [
            ReadTask(
                partial(_read, plans[id(task.plan)], task.split, task.numbers, task.columns),
                BlockMetadata(
                    num_rows=task.num_rows,
                    size_bytes=task.num_rows * _row_bytes(task.plan),
                    input_files=None,
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for task in self._tasks
        ]

    def _unique_plans(self) -> Iterable[ShardTask]:
        return {id(task.plan): task for task in self._tasks}.values()


def _read(
    plan_ref: ray.ObjectRef[Plan], split: str, numbers: Sequence[int], columns: Sequence[str]
) -> Iterator[pa.Table]:
    plan = _get_plan(plan_ref)
    for number in numbers:
        yield to_block(plan.read(number, columns), split=split, shard=number)


@lru_cache(maxsize=2)
def _get_plan(plan_ref: ray.ObjectRef[Plan]) -> Plan:
    # A plan with many files takes long to unpack, and a worker runs many tasks of it.
    return ray.get(plan_ref)


def _row_bytes(plan: Plan) -> int:
    return prod(plan.rows.shape) + BYTES_PER_ROW
