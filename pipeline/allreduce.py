"""The sum of a vector over all workers, the same bits on each.

CPU workers of one node add through memory that they share. gloo hands every sum from thread to
thread; where waking one is slow, as on virtual machines, that costs more than a step.
"""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import Tensor

SHARED_FOLDER = "/dev/shm"
LINE_BYTES = 64


class AllReduce:
    """Adds up one float32 vector of each worker; made by all of them at once, like every sum."""

    def __init__(self, like: Tensor) -> None:
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._turn = 0
        self._memory: mmap.mmap | None = None
        # Of an x86 alone it is sure that others see the vector before the turn written after it.
        if self._world_size > 1 and like.device.type == "cpu" and platform.machine() == "x86_64":
            self._share(like.numel())

    def __call__(self, vector: Tensor) -> None:
        """Replaces the vector by the sum over all workers, in the order of their ranks."""
        if self._memory is None:
            if self._world_size > 1:
                dist.all_reduce(vector)
            return
        self._turn += 1
        # In turns: when all have written the next sum, all have read this one.
        slots = self._slots[self._turn % 2]
        slots[self._rank].copy_(vector)
        self._written[self._rank * LINE_BYTES // 8] = self._turn
        # Spinning, as a sleeping thread would be woken too late. Ray ends us if a peer has died.
        while min(self._written[:: LINE_BYTES // 8]) < self._turn:
            os.sched_yield()
        torch.sum(slots, 0, out=vector)

    def _share(self, size: int) -> None:
        """Maps memory for all workers, unless one of them does not see it: another node's."""
        header = self._world_size * LINE_BYTES
        length = header + 2 * self._world_size * size * 4
        path = [_make_file(length) if self._rank == 0 else None]
        dist.broadcast_object_list(path)
        memory = _map(path[0], length)
        seen = [False] * self._world_size
        dist.all_gather_object(seen, memory is not None)
        if path[0] and self._rank == 0:
            os.unlink(path[0])
        if memory is None or not all(seen):
            return
        self._memory = memory
        self._written = memoryview(memory)[:header].cast("q")
        slots = torch.frombuffer(memory, dtype=torch.float32, offset=header)
        self._slots = slots.view(2, self._world_size, size)


def _make_file(length: int) -> str | None:
    with suppress(OSError):
        handle, path = tempfile.mkstemp(dir=SHARED_FOLDER)
        try:
            os.posix_fallocate(handle, 0, length)
            return path
        except OSError:
            os.unlink(path)
        finally:
            os.close(handle)
    return None


def _map(path: str | None, length: int) -> mmap.mmap | None:
    if path is None:
        return None
    with suppress(OSError), open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), length)
    return None
