"""The batches of a split, epoch by epoch, and what of each is this worker's.

A global batch is the same rows whatever the number of workers; each takes its slice. A split that
fits the memory allowed lies on the device whole, and an epoch's order is any order of its rows. A
larger one is streamed by windows of one shard, of two, and soon of as many as fill half of that
memory, while the next window is read: an epoch's order is then any order of the shards, and of the
rows in each window. Either way every row comes once an epoch, and the order follows from the seed
and the epoch alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.artifacts.manifests import DatasetManifest, FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.data import shards

GROUP_ROWS = 8192


class Window(NamedTuple):
    """uint8 (rows, height, width), or (rows, pixels) where some are left out; int64 (rows,)."""

    images: Tensor
    labels: Tensor


class RankSlice(NamedTuple):
    """A worker's rows of a global batch: where they begin in it, how many, and of how many."""

    start: int
    rows: int
    total: int


class BatchGroup(NamedTuple):
    """Some batches in the order of training: this worker's rows of them, end to end."""

    images: Tensor
    labels: Tensor
    parts: list[RankSlice]

    @property
    def rows(self) -> list[int]:
        """This worker's rows of each batch."""
        return [part.rows for part in self.parts]


class BatchLoader:
    """The batches of a split, cut in the order of its rows, or of a seeded shuffle of them."""

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
        """`seed` None takes the rows in file order. `memory_bytes` is for this worker's images."""
        self._storage, self._dataset, self._device = storage, dataset, device
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self.rows = dataset.rows[split]
        self.waited_s = 0.0
        self._shards = dataset.shards(split)
        num_pixels = dataset.image.num_pixels
        self._whole: Window | None = None
        self._window_rows = memory_bytes // 2 // num_pixels
        if self.rows * num_pixels <= memory_bytes:
            started = time.perf_counter()
            self._whole = self._read(self._shards)
            self.waited_s = time.perf_counter() - started

    def drop_zero_pixels(self) -> Tensor:
        """Leaves out pixels that are 0 in every row, if all lie in memory; returns those kept."""
        if self._whole is None:
            return torch.arange(self._dataset.image.num_pixels)
        images = self._whole.images.flatten(1)
        kept = images.any(0).nonzero().flatten()
        # Moved together in place, as there may be no room for two of them.
        pixels, end = images.view(-1), 0
        for rows in images.split(GROUP_ROWS):
            start, end = end, end + len(rows) * len(kept)
            pixels[start:end] = rows.index_select(1, kept).view(-1)
        self._whole = self._whole._replace(images=pixels[:end].view(len(images), len(kept)))
        return kept.cpu()

    def epoch(self, number: int = 0) -> Iterator[BatchGroup]:
        """All rows once; what a window leaves over begins the first batch of the next."""
        random = None
        if self._seed is not None:
            random = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        left: Window | None = None
        for window in self._windows(random):
            rows, start = len(window.labels), 0
            order = None if random is None else torch.randperm(rows, generator=random)
            if left:
                start = min(rows, self._batch_size - len(left.labels))
                left = _join(left, self._take(window, order, 0, start))
                if len(left.labels) < self._batch_size:
                    continue
                yield self._block(left, None, 0, self._batch_size)
            end = rows - (rows - start) % self._batch_size
            size = max(1, GROUP_ROWS // self._batch_size) * self._batch_size
            for begin in range(start, end, size):
                yield self._block(window, order, begin, min(begin + size, end))
            left = self._take(window, order, end, rows) if end < rows else None
        if left:
            yield self._block(left, None, 0, len(left.labels))

    def _windows(self, random: torch.Generator | None) -> Iterator[Window]:
        if self._whole:
            yield self._whole
            return
        groups, size, room = list[list[FileEntry]](), 0, 0
        number = len(self._shards)
        for index in range(number) if random is None else torch.randperm(number, generator=random):
            shard = self._shards[int(index)]
            assert shard.rows is not None
            if not groups or shard.rows > room:
                groups.append([])
                # Of one shard at first, so that an epoch begins soon; then twice as large each.
                size = room = min(self._window_rows, 2 * size or shard.rows)
            groups[-1].append(shard)
            room -= shard.rows
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._read, groups[0])
            for group in (*groups[1:], None):
                started = time.perf_counter()
                window = ahead.result()
                self.waited_s += time.perf_counter() - started
                if group:
                    ahead = pool.submit(self._read, group)
                yield window

    def _block(self, window: Window, order: Tensor | None, begin: int, end: int) -> BatchGroup:
        """This worker's slices of the batches that rows `begin` to `end` of an order make."""
        parts, mine = list[RankSlice](), list[range]()
        for first in range(begin, end, self._batch_size):
            total = min(self._batch_size, end - first)
            start, stop = (
                total * rank // self._world_size for rank in (self._rank, self._rank + 1)
            )
            parts.append(RankSlice(start, stop - start, total))
            mine.append(range(first + start, first + stop))
        if self._world_size == 1:
            return BatchGroup(*self._take(window, order, begin, end), parts)
        rows = torch.cat([torch.arange(share.start, share.stop) for share in mine])
        rows = rows if order is None else order[rows]
        return BatchGroup(*self._take(window, rows, 0, len(rows)), parts)

    def _take(self, window: Window, order: Tensor | None, begin: int, end: int) -> Window:
        if order is None:
            return Window(window.images[begin:end], window.labels[begin:end])
        rows = order[begin:end].to(self._device)
        return Window(window.images.index_select(0, rows), window.labels.index_select(0, rows))

    def _read(self, files: list[FileEntry]) -> Window:
        data = shards.read(self._storage, self._dataset, files)
        images = torch.from_numpy(data.images).to(self._device)
        return Window(images, torch.from_numpy(data.labels).to(self._device, torch.int64))


def _join(first: Window, second: Window) -> Window:
    return Window(
        torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels])
    )
