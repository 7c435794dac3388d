"""Results of Ray Data's tasks, streamed to the driver."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray.data
from ray.exceptions import RayTaskError

from pipeline.cluster import ray_hooks
from pipeline.console import progress
from pipeline.errors import UserError


def result_row(num_rows: int, value: object) -> dict[str, Any]:
    """Return what a task computed from so many rows as a row of a Dataset."""
    return {"rows": num_rows, "value": pickle.dumps(value)}


def result_block(num_rows: int, value: object) -> pa.Table:
    """Return the same as a block of one row."""
    return pa.Table.from_pylist([result_row(num_rows, value)])


def stream(dataset: ray.data.Dataset, title: str, num_rows: int) -> Iterator[Any]:
    """Run a Dataset whose blocks are results; yield their values as they come, in order.

    Raise a UserError of a task as itself.
    """
    context = dataset.context
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    # Otherwise Ray wraps the task's exception, and a UserError would not be seen.
    context.raise_original_map_exception = True
    ray_hooks.faster_datasets()
    failure = None
    try:
        with progress(title, total=num_rows) as show:
            done = 0
            for result in dataset.iter_rows():
                done += result["rows"]
                show(done, "rows")
                yield pickle.loads(result["value"])
    except RayTaskError as error:
        if not isinstance(error.cause, UserError):
            raise
        # Ray adds lines about attempts.
        failure = type(error.cause)(str(error.cause).partition("\n")[0])
    if failure:
        # Free Ray's frames before raising: a kept traceback keeps actors, and so CPUs, alive. Some
        # are in cycles, hence `gc.collect()`.
        del dataset, context
        gc.collect()
        raise failure
