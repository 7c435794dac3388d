"""Shards of plans as Datasets of Ray.

A read task reads some shards of a plan, one after the other, and may apply a function to them. Ray
Data runs what follows by `map_batches` in the same task. Either way, images do not pass through the
object store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any, TypeAlias

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Dataset, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipeline.cluster import resources
from pipeline.data.blocks import to_block
from pipeline.data.plan import Plan

BlockFunction: TypeAlias = Callable[[Iterator[pa.Table]], Iterable[pa.Table]]
"""A function of the blocks of a task: those of its shards, read one after the other."""

TASK_BYTES = 128 << 20
"""Bytes of images that a task returns, unless a single shard has more: they count against the
object store."""

MAX_SHARDS_PER_TASK = 64
"""Between two tasks a worker waits 0.1 s for Ray. So many shards make that negligible."""

TASKS_PER_CPU = 4
"""With fewer tasks, CPUs would be idle at the end while the last tasks run."""

BYTES_PER_ROW = 256
"""Bytes of a row besides its pixels: id, label, hash, and the overhead of columns."""

COPIES = 4
"""How often the image of a shard is held as it is read, mixed, written and encoded."""

PROCESS_BYTES = 256 << 20
"""Memory of a worker process before it reads."""


@dataclass(frozen=True)
class ShardTask:
    """The shards of a plan that a task reads, and the function that it applies to them, if any.

    `split` is that of the files.
    """

    plan: Plan
    split: str
    numbers: Sequence[int]
    columns: Sequence[str] = ()
    function: BlockFunction | None = None
    returns_images: bool = True

    @property
    def num_rows(self) -> int:
        return sum(self.plan.shard_rows(number) for number in self.numbers)

    @property
    def output_bytes(self) -> int:
        """The bytes that the task returns to Ray, about."""
        return self.num_rows * _row_bytes(self.plan) if self.returns_images else 0


def plan_tasks(
    plan: Plan,
    split: str,
    *,
    columns: Sequence[str] = (),
    numbers: Sequence[int] | None = None,
    function: BlockFunction | None = None,
    returns_images: bool = True,
    num_cpus: int | None = None,
) -> list[ShardTask]:
    """Divide the shards of a plan, or those with these numbers, among tasks for so many CPUs.

    By default these are the CPUs of the cluster. `returns_images` is false if the function returns
    only what it computed from them.
    """
    numbers = range(plan.num_shards) if numbers is None else numbers
    num_tasks = TASKS_PER_CPU * (num_cpus or resources.num_cpus())
    size = min(MAX_SHARDS_PER_TASK, len(numbers) // num_tasks)
    if returns_images:
        shard_bytes = min(plan.rows_per_shard, plan.num_rows) * _row_bytes(plan)
        size = min(size, TASK_BYTES // max(1, shard_bytes))
    size = max(1, size)
    return [
        ShardTask(plan, split, numbers[start : start + size], columns, function, returns_images)
        for start in range(0, len(numbers), size)
    ]


def read_tasks(tasks: Sequence[ShardTask], **remote_args: Any) -> Dataset:
    """Return the Dataset of these tasks, each of which reserves a CPU and the memory it needs.

    Raise ResourcesMissing if no node has that memory.
    """
    options = reserved(tasks) | remote_args
    if options["memory"]:
        resources.require_memory(options["memory"], "a smaller rows-per-shard")
    dataset: Dataset = ray.data.read_datasource(
        ImageDatasource(tasks), override_num_blocks=len(tasks), **options
    )
    return dataset


def shard_memory(plan: Plan) -> int:
    """Return the bytes of memory that a task needs for one shard."""
    return PROCESS_BYTES + COPIES * min(plan.rows_per_shard, plan.num_rows) * _row_bytes(plan)


def reserved(tasks: Iterable[ShardTask]) -> dict[str, Any]:
    """Return what these tasks reserve. Ray fuses operations that reserve the same."""
    output = max((task.output_bytes for task in tasks), default=0)
    shard = max((shard_memory(task.plan) for task in tasks), default=0)
    return {"num_cpus": 1, "memory": output + shard}


class ImageDatasource(Datasource):
    """A Datasource whose read tasks read shards of plans."""

    def __init__(self, tasks: Sequence[ShardTask]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tasks = tasks

    def get_name(self) -> str:
        return "Images"

    def estimate_inmemory_data_size(self) -> int:
        return sum(task.output_bytes for task in self._tasks)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """Return a read task for each task, however many are asked for."""
        # Large, and the same for many tasks: they are put into the object store once.
        by_plan = {id(task.plan): task for task in self._tasks}
        shared = {key: ray.put((task.plan, task.function)) for key, task in by_plan.items()}
        return [
            ReadTask(
                partial(_read, shared[id(task.plan)], task.split, task.numbers, task.columns),
                BlockMetadata(
                    num_rows=task.num_rows,
                    size_bytes=task.output_bytes,
                    input_files=None,
                    exec_stats=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for task in self._tasks
        ]


def _read(
    shared: ray.ObjectRef[Any], split: str, numbers: Sequence[int], columns: Sequence[str]
) -> Iterator[pa.Table]:
    plan, function = _get(shared)
    blocks = (to_block(plan.read(number, columns), split=split, shard=number) for number in numbers)
    yield from function(blocks) if function else blocks


@lru_cache(maxsize=2)
def _get(shared: ray.ObjectRef[Any]) -> Any:
    # A plan with many files takes long to unpack, and a worker runs many tasks of it.
    return ray.get(shared)


def _row_bytes(plan: Plan) -> int:
    return prod(plan.rows.shape) + BYTES_PER_ROW
