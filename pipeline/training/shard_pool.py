"""The shards of a streamed epoch, read ahead into memory of a fixed size on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from pipeline.arrays import Int64Array
from pipeline.training.lanes import ShardUse

READERS = 4
"""Threads that read. With 80 ms per file, as of an object store, one gives half of their rate."""


class ShardPool:
    """A tensor of slots, each of which holds a shard until all its rows were taken."""

    def __init__(
        self,
        read: Callable[[int, Tensor, Tensor], None],
        uses: Sequence[ShardUse],
        *,
        num_slots: int,
        slot_rows: int,
        image_shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        """Start to read shards in the order of their uses, as many as there are slots.

        `read` writes the shard of an index to images, uint8 (rows, height, width), and labels,
        int64 (rows,), on the CPU.
        """
        self._read, self._uses = read, uses
        self._slot_rows, self._device = slot_rows, device
        rows = num_slots * slot_rows
        self._images = torch.empty(rows, *image_shape, dtype=torch.uint8, device=device)
        self._labels = torch.empty(rows, dtype=torch.int64, device=device)
        first_rows = np.array([use.row for use in uses], np.int64)
        self._by_row = np.argsort(first_rows)
        self._first_rows = first_rows[self._by_row]
        self._offsets = np.zeros(len(uses), np.int64)
        self._free_slots = list(range(num_slots))
        self._held = dict[int, tuple[int, Future[None]]]()
        self._num_started = 0
        self.waited_s = 0.0
        self._readers = ThreadPoolExecutor(READERS, "shard-reader")
        self._start_reads()

    def close(self) -> None:
        """Wait until no thread reads, and start no further read."""
        self._readers.shutdown(cancel_futures=True)

    def take(self, rows: Int64Array, place: int) -> tuple[Tensor, Tensor]:
        """Return images and labels of rows, given by their numbers as in `ShardUse.row`.

        They are needed before this place of the epoch, and no row before it is needed later.
        """
        uses = self._by_row[np.searchsorted(self._first_rows, rows, "right") - 1]
        left = np.arange(len(rows))
        taken, images, labels = list[Int64Array](), list[Tensor](), list[Tensor]()
        # One turn takes all, unless the rows are from more shards than there are slots.
        while not taken or len(left):
            is_held = uses[left] < self._num_started
            now, left = left[is_held], left[~is_held]
            begun = self._wait_for_begun(place)
            index = torch.from_numpy(rows[now] + self._offsets[uses[now]]).to(self._device)
            taken.append(now)
            images.append(self._images.index_select(0, index))
            labels.append(self._labels.index_select(0, index))
            self._free([use for use in begun if self._uses[use].end <= place])
            self._start_reads()
        if len(taken) == 1:
            return images[0], labels[0]
        order = torch.from_numpy(np.argsort(np.concatenate(taken))).to(self._device)
        return torch.cat(images)[order], torch.cat(labels)[order]

    def _start_reads(self) -> None:
        """Start to read the next shards into the free slots."""
        while self._free_slots and self._num_started < len(self._uses):
            use, slot = self._num_started, self._free_slots.pop()
            self._offsets[use] = slot * self._slot_rows - self._uses[use].row
            self._held[use] = slot, self._readers.submit(self._fill, slot, self._uses[use])
            self._num_started += 1

    def _fill(self, slot: int, use: ShardUse) -> None:
        """Read a shard into a slot, on a GPU by way of pinned memory."""
        rows = slice(slot * self._slot_rows, slot * self._slot_rows + use.rows)
        slots = self._images[rows], self._labels[rows]
        if self._device.type == "cpu":
            self._read(use.shard, *slots)
            return
        # Each thread has a current device and a stream of its own.
        with torch.cuda.device(self._device):
            pinned = [torch.empty_like(part, device="cpu", pin_memory=True) for part in slots]
            self._read(use.shard, *pinned)
            for part, source in zip(slots, pinned, strict=True):
                part.copy_(source, non_blocking=True)
            torch.cuda.current_stream().synchronize()

    def _wait_for_begun(self, place: int) -> list[int]:
        """Wait for the shards in slots that begin before this place; return their uses."""
        begun = [*takewhile(lambda use: self._uses[use].begin < place, self._held)]
        started = time.perf_counter()
        for use in begun:
            self._held[use][1].result()
        self.waited_s += time.perf_counter() - started
        return begun

    def _free(self, uses: Sequence[int]) -> None:
        if uses and self._device.type == "cuda":
            # The gathers must have ended before a thread writes to their slots.
            torch.cuda.current_stream(self._device).synchronize()
        for use in uses:
            slot, _ = self._held.pop(use)
            self._free_slots.append(slot)
