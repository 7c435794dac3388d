"""The batches of a split, epoch by epoch, and this worker's slice of each.

A global batch holds the same rows in the same order for any number of workers, and each worker
takes its slice. Every row comes once per epoch, in an order that follows from the seed and the
epoch alone.

A split that fits the allowed memory is loaded as a whole, and its rows are shuffled. A larger one
is streamed in lanes of shuffled shards, with the rows of each shard shuffled. Each worker reads the
shards of its own lanes, and no others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Lock
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.arrays import Int64Array
from pipeline.artifacts.commit import read_file
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.data import shards
from pipeline.errors import SettingError
from pipeline.training.lanes import Lanes, num_lanes, ranges, shard_rows
from pipeline.training.shard_pool import ShardPool

GROUP_ROWS = 8192
"""Rows gathered at once for several batches: one index_select for each batch would be slower."""

SHUFFLE, AUGMENT, MODEL = 0, 1, 2
"""The uses of random numbers. Each rank has one of its own for its model: MODEL + rank."""

Order: TypeAlias = Literal["file", "shuffled", "any"]
"""The order of rows: that of the files, that of a seed, or whichever is read fastest."""


class Rows(NamedTuple):
    """Rows in memory, on the device."""

    images: Tensor
    """uint8 (rows, height, width), or (rows, pixels) if some pixels are left out."""
    labels: Tensor
    """int64 (rows,)."""


class RankSlice(NamedTuple):
    """A worker's slice of a global batch."""

    start: int
    """Index of its first row in the batch."""
    rows: int
    """Number of its rows."""
    total: int
    """Number of rows of the whole batch."""


class BatchGroup(NamedTuple):
    """Consecutive batches: this worker's slices of them, end to end."""

    images: Tensor
    labels: Tensor
    slices: list[RankSlice]

    @property
    def rows(self) -> list[int]:
        """Return the number of this worker's rows of each batch."""
        return [rank_slice.rows for rank_slice in self.slices]


class BatchLoader:
    """The batches of a split."""

    def __init__(
        self,
        storage: Storage,
        dataset: DatasetManifest,
        split: str,
        *,
        order: Order,
        batch_size: int,
        memory_bytes: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        """Load the split if its images fit `memory_bytes`.

        Otherwise each worker reads its own lanes. They must be at least as many as the workers if
        the order is shuffled: raise SettingError if they are not. File order is the exception: it
        has one lane, which every worker reads as a whole.
        """
        self._storage, self._dataset, self._device = storage, dataset, device
        self._order, self._seed, self._batch_size = order, seed, batch_size
        self._rank, self._world_size = rank, world_size
        self._memory_bytes = memory_bytes
        self._files = dataset.shards(split)
        self._shard_rows = np.array(shard_rows(dataset, split), np.int64)
        self.rows = dataset.rows[split]
        self.bytes_read = 0
        """Bytes of the shards that this worker read so far."""
        self.waited_s = 0.0
        """Seconds in which no step could run, because rows were not read yet."""
        # One shard at a time is decoded: that must leave the other cores to the steps.
        self._decoding = Lock()
        self._whole: Rows | None = None
        lanes = num_lanes(dataset, split, memory_bytes)
        self._num_lanes = 1 if order == "file" or lanes is None else lanes
        self._own_lanes = range(1)
        if order != "file":
            start, stop = (self._num_lanes * r // world_size for r in (rank, rank + 1))
            self._own_lanes = range(start, stop)
        if lanes is None:
            started = time.perf_counter()
            rows = shards.read(storage, dataset, self._files)
            images = torch.from_numpy(rows.images).to(device)
            self._whole = Rows(images, torch.from_numpy(rows.labels).to(device, torch.int64))
            self.waited_s = time.perf_counter() - started
            self.bytes_read = sum(file.bytes for file in self._files)
        elif order == "shuffled" and lanes < world_size:
            raise SettingError(
                f"The {len(self._files)} shards of {split!r} are streamed in {lanes} lanes, fewer "
                f"than the {world_size} workers. Make them with a smaller --data.rows-per-shard, "
                "allow a larger --train.memory-mib, or train with a smaller --train.num-workers."
            )

    @property
    def is_streamed(self) -> bool:
        """Return whether the split does not fit the memory."""
        return self._whole is None

    def drop_zero_pixels(self) -> Tensor:
        """Leave out pixels that are 0 in every row; return the indices of those kept.

        If the split is streamed, all pixels are kept, because not all rows were seen.
        """
        if self._whole is None:
            return torch.arange(self._dataset.image.num_pixels)
        images = self._whole.images.flatten(1)
        kept = images.any(0).nonzero().flatten()
        # The pixels are moved within their tensor, because memory may not hold two of them.
        pixels, end = images.view(-1), 0
        for rows in images.split(GROUP_ROWS):
            start, end = end, end + len(rows) * len(kept)
            pixels[start:end] = rows.index_select(1, kept).view(-1)
        self._whole = self._whole._replace(images=pixels[:end].view(len(images), len(kept)))
        return kept.cpu()

    def epoch(self, number: int = 0, first_step: int = 0) -> Iterator[BatchGroup]:
        """Yield the batches of an epoch in groups, without those before number `first_step`."""
        if self._whole is None:
            return self._stream(number, first_step)
        return self._take_whole(self._whole, number, first_step)

    def _take_whole(self, whole: Rows, number: int, first_step: int) -> Iterator[BatchGroup]:
        """Yield the groups of an epoch of a split in memory."""
        order = self._permutation(self.rows, number)
        for bounds in self._groups(first_step):
            slices, places = self._cut_evenly(bounds)
            if order is None and self._world_size == 1:
                # The slices are the whole batches, one after the other.
                start, stop = bounds[[0, -1]].tolist()
                yield BatchGroup(whole.images[start:stop], whole.labels[start:stop], slices)
                continue
            rows = torch.from_numpy(places)
            rows = (rows if order is None else order[rows]).to(self._device)
            images, labels = (column.index_select(0, rows) for column in whole)
            yield BatchGroup(images, labels, slices)

    def _stream(self, number: int, first_step: int) -> Iterator[BatchGroup]:
        """Yield the groups of an epoch of a split of which a part is in memory."""
        order = self._permutation(len(self._files), number)
        dealt = np.arange(len(self._files)) if order is None else order.numpy()
        lanes = Lanes(self._shard_rows[dealt], self._num_lanes)
        start = first_step * self._batch_size
        uses = [use for use in lanes.uses(self._own_lanes) if use.end > start]
        slot_rows = int(self._shard_rows.max())
        held = self._memory_bytes // (slot_rows * self._dataset.image.num_pixels)
        pool = ShardPool(
            lambda shard, *rows: self._read_shuffled(int(dealt[shard]), number, *rows),
            uses,
            num_slots=min(len(uses), max(2 * len(self._own_lanes), held)),
            slot_rows=slot_rows,
            image_shape=self._dataset.image.shape,
            device=self._device,
        )
        try:
            for bounds in self._groups(first_step):
                is_even = self._order == "file"
                slices, rows = self._cut_evenly(bounds) if is_even else self._cut(bounds, lanes)
                yield BatchGroup(*pool.take(rows, int(bounds[-1])), slices)
        finally:
            pool.close()
            self.waited_s += pool.waited_s

    def _groups(self, first_step: int) -> Iterator[Int64Array]:
        """Yield the places where the batches of each group begin, and where the last ends.

        A last batch that is smaller is a group of its own.
        """
        num_whole, rest = divmod(self.rows, self._batch_size)
        steps = max(1, GROUP_ROWS // self._batch_size)
        for step in range(first_step, num_whole, steps):
            yield np.arange(step, min(step + steps, num_whole) + 1) * self._batch_size
        if rest and first_step <= num_whole:
            yield np.array([self.rows - rest, self.rows])

    def _cut_evenly(self, bounds: Int64Array) -> tuple[list[RankSlice], Int64Array]:
        """Return this worker's slices of batches, of equal size, and the places of their rows."""
        totals = np.diff(bounds)
        starts, stops = (totals * r // self._world_size for r in (self._rank, self._rank + 1))
        return _slices(starts, stops - starts, totals), ranges(bounds[:-1] + starts, stops - starts)

    def _cut(self, bounds: Int64Array, lanes: Lanes) -> tuple[list[RankSlice], Int64Array]:
        """Return this worker's slices of batches, of its own lanes, and the rows of these."""
        taken = lanes.taken(bounds)
        counts = np.diff(taken, axis=0)
        own = slice(self._own_lanes.start, self._own_lanes.stop)
        slices = _slices(counts[:, : own.start].sum(1), counts[:, own].sum(1), counts.sum(1))
        first_rows = lanes.starts + taken[:-1]
        return slices, ranges(first_rows[:, own].ravel(), counts[:, own].ravel())

    def _permutation(self, count: int, epoch: int, *parts: int) -> Tensor | None:
        """Return a permutation of `count` rows or shards, int64, or None if none is wanted."""
        if self._order != "shuffled":
            return None
        seed = stream_seed(self._seed, epoch, SHUFFLE, *parts)
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed))

    def _read_shuffled(self, shard: int, epoch: int, images: Tensor, labels: Tensor) -> None:
        """Write the rows of a shard, in the order of this epoch, to images and labels."""
        content = read_file(self._storage, f"datasets/{self._dataset.ref}", self._files[shard])
        # Part 0 is the order of the shards.
        order = self._permutation(len(labels), epoch, 1 + shard)
        numbers = np.arange(len(labels)) if order is None else order.numpy()
        with self._decoding:
            self.bytes_read += len(content)
            rows = shards.decode(content, self._dataset.image)
            # With another mode, numpy would write to a buffer first.
            np.take(rows.images, numbers, axis=0, out=images.numpy(), mode="clip")
            np.take(rows.labels.astype(np.int64), numbers, out=labels.numpy(), mode="clip")


def stream_seed(seed: int, number: int, use: int, *parts: int) -> int:
    """Return the seed of the random numbers of an epoch or a step for one use.

    The numbers of each are independent of all others, as are those of the parts of a use.
    """
    return int(np.random.SeedSequence((seed, number, use, *parts)).generate_state(1)[0])


def _slices(starts: Int64Array, rows: Int64Array, totals: Int64Array) -> list[RankSlice]:
    columns = (starts.tolist(), rows.tolist(), totals.tolist())
    return [RankSlice(*row) for row in zip(*columns, strict=True)]
