"""The batches of a split, epoch by epoch, and this worker's slice of each.

A global batch holds the same rows for any number of workers, and each worker takes its slice. Every
row comes once per epoch, in an order that follows from the seed and the epoch alone.

A split that fits the allowed memory is loaded as a whole, and its rows are shuffled. A larger one
is streamed in windows: the shards are shuffled, then the rows within each window, and a thread
reads the next window meanwhile. The first window is one shard, so that an epoch starts soon; each
further one is twice as large, up to half of the allowed memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.manifests import DatasetManifest, FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.data import shards
from pipeline.training.run_state import window_rows

GROUP_ROWS = 8192
"""Rows gathered at once for several batches: one index_select for each batch would be slower."""


SHUFFLE, AUGMENT, MODEL = 0, 1, 2
"""The uses of random numbers. Each rank has one of its own for its model: MODEL + rank."""


class Window(NamedTuple):
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
    """The batches of a split, in the order of its rows or of a seeded shuffle."""

    def __init__(
        self,
        storage: Storage,
        dataset: DatasetManifest,
        split: str,
        *,
        batch_size: int,
        memory_bytes: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
    ) -> None:
        """Load the split if its images fit `memory_bytes`. Without a seed, keep the file order."""
        self._storage, self._dataset, self._device = storage, dataset, device
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self.rows = dataset.rows[split]
        self.waited_s = 0.0
        self._shards = dataset.shards(split)
        self._whole: Window | None = None
        self._window_rows = window_rows(dataset, split, memory_bytes)
        if self._window_rows is None:
            started = time.perf_counter()
            self._whole = self._read(self._shards)
            self.waited_s = time.perf_counter() - started

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
        """Yield all rows once, in groups of batches.

        The rows of a window that do not fill a batch begin the first batch of the next window.
        """
        random = None
        if self._seed is not None:
            random = torch.Generator().manual_seed(stream_seed(self._seed, number, SHUFFLE))
        group_rows = max(1, GROUP_ROWS // self._batch_size) * self._batch_size
        rest: Window | None = None
        skip = first_step * self._batch_size
        for window in self._windows(random):
            num_rows = len(window.labels)
            order = None if random is None else torch.randperm(num_rows, generator=random)
            start = skip if self._whole else 0
            if rest:
                start = min(num_rows, self._batch_size - len(rest.labels))
                rest = _concatenate(rest, self._take(window, order, 0, start))
                if len(rest.labels) < self._batch_size:
                    continue
                yield self._group(rest, None, 0, self._batch_size)
            end = num_rows - (num_rows - start) % self._batch_size
            for group_start in range(start, end, group_rows):
                yield self._group(window, order, group_start, min(group_start + group_rows, end))
            rest = self._take(window, order, end, num_rows) if end < num_rows else None
        if rest:
            yield self._group(rest, None, 0, len(rest.labels))

    def _windows(self, random: torch.Generator | None) -> Iterator[Window]:
        """Yield the whole split if it is in memory; otherwise windows, reading one ahead."""
        if self._whole:
            yield self._whole
            return
        first, *others = self._window_shards(random)
        with ThreadPoolExecutor(1) as pool:
            next_window = pool.submit(self._read, first)
            for window_shards in (*others, None):
                started = time.perf_counter()
                window = next_window.result()
                self.waited_s += time.perf_counter() - started
                if window_shards:
                    next_window = pool.submit(self._read, window_shards)
                yield window

    def _window_shards(self, random: torch.Generator | None) -> list[list[FileEntry]]:
        """Return the shards of each window of an epoch."""
        num_shards = len(self._shards)
        order: Iterable[Any] = range(num_shards)
        if random is not None:
            order = torch.randperm(num_shards, generator=random)
        assert self._window_rows is not None
        windows = list[list[FileEntry]]()
        size = rows_left = 0
        for index in order:
            shard = self._shards[int(index)]
            assert shard.rows is not None
            if not windows or shard.rows > rows_left:
                windows.append([])
                size = min(self._window_rows, 2 * size or shard.rows)
                rows_left = size
            windows[-1].append(shard)
            rows_left -= shard.rows
        return windows

    def _group(self, window: Window, order: Tensor | None, start: int, stop: int) -> BatchGroup:
        """Return this worker's slices of the batches in rows `start` to `stop` of an order."""
        slices, row_ranges = list[RankSlice](), list[range]()
        for batch_start in range(start, stop, self._batch_size):
            total = min(self._batch_size, stop - batch_start)
            slice_start = total * self._rank // self._world_size
            slice_stop = total * (self._rank + 1) // self._world_size
            slices.append(RankSlice(slice_start, slice_stop - slice_start, total))
            row_ranges.append(range(batch_start + slice_start, batch_start + slice_stop))
        if self._world_size == 1:
            # The slices are the whole batches, one after the other.
            return BatchGroup(*self._take(window, order, start, stop), slices)
        rows = torch.cat([torch.arange(rows.start, rows.stop) for rows in row_ranges])
        rows = rows if order is None else order[rows]
        return BatchGroup(*self._take(window, rows, 0, len(rows)), slices)

    def _take(self, window: Window, order: Tensor | None, start: int, stop: int) -> Window:
        """Return rows `start` to `stop` of an order of the window's rows."""
        if order is None:
            return Window(window.images[start:stop], window.labels[start:stop])
        rows = order[start:stop].to(self._device)
        return Window(window.images.index_select(0, rows), window.labels.index_select(0, rows))

    def _read(self, files: list[FileEntry]) -> Window:
        rows = shards.read(self._storage, self._dataset, files)
        images = torch.from_numpy(rows.images).to(self._device)
        return Window(images, torch.from_numpy(rows.labels).to(self._device, torch.int64))


def stream_seed(seed: int, number: int, use: int) -> int:
    """Return the seed of the random numbers of an epoch or a step for one use.

    The numbers of each are independent of all others.
    """
    return int(np.random.SeedSequence((seed, number, use)).generate_state(1)[0])


def _concatenate(first: Window, second: Window) -> Window:
    return Window(
        torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels])
    )
