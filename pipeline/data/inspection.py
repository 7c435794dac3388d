"""Inspect all rows of a source before any is written, by Ray Data."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays import UInt64Array
from pipeline.console import progress
from pipeline.data import partitions, validation
from pipeline.data.partitions import Partition
from pipeline.data.readers.rows import Rows
from pipeline.data.sources import Source
from pipeline.data.validation import SplitStats


class RowRange(NamedTuple):
    """Rows `start` to `stop` of these become a split."""

    rows: Rows
    start: int
    stop: int


def partition_splits(splits: dict[str, RowRange], rows_per_shard: int) -> list[Partition]:
    return [
        piece
        for name, split in splits.items()
        for piece in partitions.partition_rows(
            *split, split=name, path=f"{name}/part-{{:05}}.parquet", rows_per_shard=rows_per_shard
        )
    ]


def inspect_splits(
    source: Source, splits: dict[str, RowRange], rows_per_piece: int
) -> tuple[dict[str, SplitStats], dict[str, UInt64Array]]:
    """What is found of each split, over all its rows, and the hashes of the splits after it.

    Hashes are compared here, the last split first. Pieces with an image of a later split are looked
    at again, to find which of their rows it is.
    """
    found, later = {name: SplitStats() for name in splits}, dict[str, UInt64Array]()
    parts, again = (
        partition_splits(dict(reversed(splits.items())), rows_per_piece),
        list[Partition](),
    )
    none: UInt64Array = np.zeros(0, np.uint64)
    known, mine = none, list[UInt64Array]()
    with progress("check", total=sum(piece.num_rows for piece in parts)) as show:
        done = 0
        looks = _inspect_partitions(parts, source, dict.fromkeys(splits, none))
        for piece, (looked, hashes) in zip(parts, looks, strict=True):
            if piece.split not in later:
                known, mine = np.sort(np.concatenate([known, *mine])), []
                later[piece.split] = known
            if len(validation.common(hashes, known)):
                again.append(piece)
            else:
                found[piece.split].add(looked)
            if piece.split != "train":
                mine.append(hashes)
            done += piece.num_rows
            show(done, "rows")
    with progress("check again", total=sum(piece.num_rows for piece in again)) as show:
        done = 0
        for piece, (looked, _) in zip(
            again, _inspect_partitions(again, source, later), strict=True
        ):
            found[piece.split].add(looked)
            done += piece.num_rows
            show(done, "rows")
    return found, later


def _inspect_partitions(
    parts: Sequence[Partition], source: Source, later: Mapping[str, UInt64Array]
) -> Iterator[tuple[SplitStats, UInt64Array]]:
    """What `checks.inspect` finds of each piece."""
    options = {"class_names": source.class_names, "later": later}
    for result in partitions.map_partitions(parts, _inspect_task, fn_kwargs=options):
        yield pickle.loads(result["looked"])


def _inspect_task(
    item: dict[str, Any], *, class_names: tuple[str, ...] | None, later: Mapping[str, UInt64Array]
) -> list[dict[str, Any]]:
    results = []
    for piece in partitions.unpack(item):
        _, found, hashes = validation.validate(piece.read(), class_names, later[piece.split])
        results.append({"looked": pickle.dumps((found, hashes))})
    return results
