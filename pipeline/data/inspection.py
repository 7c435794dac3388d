"""Inspection of all rows of a source, by Ray Data, before any shard is written."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays import UInt64Array
from pipeline.console import progress
from pipeline.data import validation
from pipeline.data.partitions import Partition, map_partitions, partition_rows, unpack
from pipeline.data.readers.rows import Rows
from pipeline.data.sources import Source
from pipeline.data.validation import SplitStats

NO_HASHES: UInt64Array = np.zeros(0, np.uint64)


class RowRange(NamedTuple):
    """Rows start..stop of `rows`, which become a split."""

    rows: Rows
    start: int
    stop: int


def partition_splits(splits: dict[str, RowRange], rows_per_shard: int) -> list[Partition]:
    """Return the partitions of all splits, in their order."""
    return [
        partition
        for name, split in splits.items()
        for partition in partition_rows(
            *split, split=name, path=f"{name}/part-{{:05}}.parquet", rows_per_shard=rows_per_shard
        )
    ]


def inspect_splits(
    source: Source, splits: dict[str, RowRange], rows_per_shard: int
) -> tuple[dict[str, SplitStats], dict[str, UInt64Array]]:
    """Validate all rows. Return the statistics of each split, and the hashes of its later splits.

    An image that also occurs in a later split is rejected from the earlier one (test leakage). The
    partitions of all splits are read in parallel, so a task cannot know the hashes of later splits.
    Hence two passes. The first hashes all rows, last split first, and compares the hashes here.
    The second re-reads only partitions that share a hash with a later split, to find the rows.
    """
    partitions = partition_splits(dict(reversed(splits.items())), rows_per_shard)
    stats = {name: SplitStats() for name in splits}
    later_hashes, to_recheck = _hash_partitions(partitions, source, stats)
    for partition, partition_stats, _ in _inspect_partitions(
        "check again", to_recheck, source, later_hashes
    ):
        stats[partition.split].add(partition_stats)
    return stats, later_hashes


def _hash_partitions(
    partitions: Sequence[Partition], source: Source, stats: Mapping[str, SplitStats]
) -> tuple[dict[str, UInt64Array], list[Partition]]:
    """Run the first pass; `partitions` are those of all splits, last split first.

    Return the sorted hashes of the splits after each, and the partitions to recheck. Add the
    statistics of all other partitions to `stats`.
    """
    later_hashes = dict[str, UInt64Array]()
    to_recheck = list[Partition]()
    # The sorted hashes of all later splits, and those of the current split so far.
    seen_hashes = NO_HASHES
    split_hashes = list[UInt64Array]()
    inspections = _inspect_partitions("check", partitions, source, dict.fromkeys(stats, NO_HASHES))
    for partition, partition_stats, hashes in inspections:
        if partition.split not in later_hashes:
            # A split begins: the previous one becomes a later split.
            seen_hashes = np.sort(np.concatenate([seen_hashes, *split_hashes]))
            split_hashes = []
            later_hashes[partition.split] = seen_hashes
        if len(validation.common(hashes, seen_hashes)):
            to_recheck.append(partition)
        else:
            stats[partition.split].add(partition_stats)
        # No split comes before `train`, so nothing is compared with its hashes.
        if partition.split != "train":
            split_hashes.append(hashes)
    return later_hashes, to_recheck


def _inspect_partitions(
    title: str,
    partitions: Sequence[Partition],
    source: Source,
    later_hashes: Mapping[str, UInt64Array],
) -> Iterator[tuple[Partition, SplitStats, UInt64Array]]:
    """Yield each partition, in order, with its statistics and a hash per valid row."""
    options = {"class_names": source.class_names, "later_hashes": later_hashes}
    with progress(title, total=sum(partition.num_rows for partition in partitions)) as show:
        num_inspected = 0
        results = map_partitions(partitions, _inspect_task, fn_kwargs=options)
        for partition, result in zip(partitions, results, strict=True):
            stats, hashes = pickle.loads(result["inspection"])
            yield partition, stats, hashes
            num_inspected += partition.num_rows
            show(num_inspected, "rows")


def _inspect_task(
    item: dict[str, Any],
    *,
    class_names: tuple[str, ...] | None,
    later_hashes: Mapping[str, UInt64Array],
) -> list[dict[str, Any]]:
    results = []
    for partition in unpack(item):
        _, stats, hashes = validation.validate(
            partition.read(), class_names, later_hashes[partition.split]
        )
        results.append({"inspection": pickle.dumps((stats, hashes))})
    return results
