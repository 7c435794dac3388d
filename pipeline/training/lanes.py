"""Lanes: the shards of an epoch, dealt to rows of shards that advance together.

A split that memory does not hold is streamed in lanes. Every batch takes rows of every lane, in
proportion to the lane's rows, so that batches mix shards of the whole split and all lanes end
together. Row i of a lane of n rows is due at the time (i + 1) / n; the order of an epoch is that of
the times, then of the lanes. So every rank knows without reading which rows a batch takes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pipeline.arrays import Int64Array
from pipeline.artifacts.manifests import DatasetManifest

MAX_LANES = 64
"""More would hardly mix better, and an epoch starts when one shard of each lane is read."""


class ShardUse(NamedTuple):
    """The place of a shard in the order of an epoch."""

    shard: int
    """Index of the shard among those dealt."""
    row: int
    """Number of its first row, counted lane by lane."""
    rows: int
    """Number of its rows."""
    begin: int
    """Place of its first row in the order of the epoch."""
    end: int
    """Place after its last row."""


class Lanes:
    """The shards of an epoch, each dealt to the lane that has the fewest rows so far."""

    def __init__(self, rows: Int64Array, count: int) -> None:
        """Deal shards of these numbers of rows, in this order, to `count` lanes."""
        self._rows = rows
        self._lane = np.empty(len(rows), np.int64)
        self.sizes = np.zeros(count, np.int64)
        # Of lanes with the fewest rows, the first in the order of reversed bits is next: so lanes
        # that get one shard more than others are spread, and ranks have like numbers of rows.
        turns = sorted(range(count), key=lambda lane: f"{lane:06b}"[::-1])
        lanes = [(0, turn) for turn in range(count)]
        for shard, num_rows in enumerate(rows.tolist()):
            size, turn = lanes[0]
            heapq.heapreplace(lanes, (size + num_rows, turn))
            self._lane[shard] = turns[turn]
            self.sizes[turns[turn]] += num_rows
        self.starts = np.cumsum(self.sizes) - self.sizes

    def taken(self, places: Int64Array) -> Int64Array:
        """Return how many rows of each lane come before each place, (places, lanes)."""
        num_lanes, total = len(self.sizes), self.sizes.sum()
        # Rows due at the time place / total are fewer than the place by less than one per lane; so
        # the next rows of each lane, which are few, have those that are missing.
        due = self.sizes * places[:, None] // total
        missing = places - due.sum(1)
        ahead = np.arange(1, self.sizes.max() * num_lanes // total + 2)
        times = ((due[:, :, None] + ahead) / self.sizes[:, None]).reshape(len(places), -1)
        chosen = np.zeros(times.shape, np.int64)
        order = np.argsort(times, axis=1, kind="stable")
        np.put_along_axis(chosen, order, np.arange(times.shape[1]) < missing[:, None], axis=1)
        taken: Int64Array = due + chosen.reshape(*due.shape, -1).sum(2)
        return taken

    def places(self, lane: int, rows: Int64Array) -> Int64Array:
        """Return the places of these rows of a lane in the order of the epoch."""
        # Rows of lanes up to this one come first if they are due earlier, of the others at once.
        later = (np.arange(len(self.sizes)) >= lane).astype(np.int64)
        before = (self.sizes[:, None] * (rows + 1) - later[:, None]) // self.sizes[lane]
        places: Int64Array = before.sum(0)
        return places

    def uses(self, lanes: Iterable[int]) -> list[ShardUse]:
        """Return the uses of the shards of some lanes, in the order of need."""
        uses = list[ShardUse]()
        for lane in lanes:
            (shards,) = np.nonzero(self._lane == lane)
            stops = np.cumsum(self._rows[shards])
            starts = stops - self._rows[shards]
            columns = (
                shards,
                self.starts[lane] + starts,
                self._rows[shards],
                self.places(lane, starts),
                self.places(lane, stops - 1) + 1,
            )
            uses += map(ShardUse, *(column.tolist() for column in columns))
        return sorted(uses, key=lambda use: use.begin)


def num_lanes(dataset: DatasetManifest, split: str, memory_bytes: int) -> int | None:
    """Return the number of lanes of a split, or None if the memory holds all its images.

    The memory holds two shards of each lane: the one in use and the next.
    """
    if dataset.rows[split] * dataset.image.num_pixels <= memory_bytes:
        return None
    held = memory_bytes // (max(shard_rows(dataset, split)) * dataset.image.num_pixels)
    return max(1, min(MAX_LANES, len(dataset.shards(split)), held // 2))


def shard_rows(dataset: DatasetManifest, split: str) -> list[int]:
    """Return the number of rows of each shard of a split."""
    return [entry.rows or 0 for entry in dataset.shards(split)]


def ranges(starts: Int64Array, counts: Int64Array) -> Int64Array:
    """Return the numbers start, start + 1, ..., `count` of them, of each range, end to end."""
    ends = np.cumsum(counts)
    return np.repeat(starts - ends + counts, counts) + np.arange(counts.sum())
