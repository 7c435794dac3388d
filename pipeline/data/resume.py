"""Shards of an earlier attempt: which of them are complete, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ray.data

from pipeline.data.datasource import shard_memory
from pipeline.data.plan import Plan
from pipeline.data.shard_writer import ShardWriter
from pipeline.data.streaming import result_row, stream

SHARDS_PER_TASK = 64


def restore_shards(writer: ShardWriter, plan: Plan) -> Iterator[tuple[int, Any]]:
    """Verify the shards of a plan that an earlier attempt wrote, by tasks of Ray Data.

    Yield the number of each complete shard, and what the writer's `describe` returns for it.
    """
    existing = writer.find_existing()
    numbers = [number for number in existing if number < plan.num_shards]
    items = [
        {"number": number, "paths": existing[number], "rows": plan.shard_rows(number)}
        for number in numbers
    ]
    if not items:
        return

    def restore(item: Mapping[str, Any]) -> dict[str, Any]:
        shard = writer.read_existing(item["paths"], item["rows"])
        value = (item["number"], writer.describe(shard)) if shard else None
        return result_row(item["rows"], value)

    num_rows = sum(plan.shard_rows(number) for number in numbers)
    dataset = ray.data.from_items(items, override_num_blocks=-(-len(items) // SHARDS_PER_TASK))
    # A shard is decoded whole.
    restored = dataset.map(restore, memory=shard_memory(plan))
    for value in stream(restored, "verify", num_rows):
        if value:
            yield value
