"""Exchange gradients between the workers of one node, in memory that they share."""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.training.kernels.gradient_sync import GradientSync

FOLDER = "/dev/shm"

CACHE_LINE_BYTES = 64

CACHE_LINE_FLOATS = CACHE_LINE_BYTES // 4


class SharedMemorySync(GradientSync):
    """Sums gradients in the order of ranks, in memory that all workers have mapped.

    Layout: one int64 counter per worker, each in a cache line of its own; the parameters; the
    gradient of each worker. A vector is padded to a whole cache line per worker, so that no two
    workers write to the same line.
    """

    @classmethod
    def create(cls, parameters: Tensor) -> SharedMemorySync | None:
        """Map the memory in all workers, or return None if one cannot: it is on another node."""
        # The barrier relies on writes becoming visible in their order, which only x86 guarantees.
        if platform.machine() != "x86_64":
            return None
        rank, world_size = dist.get_rank(), dist.get_world_size()
        slice_size = -(-len(parameters) // (world_size * CACHE_LINE_FLOATS)) * CACHE_LINE_FLOATS
        length = world_size * CACHE_LINE_BYTES + (1 + world_size) * slice_size * world_size * 4
        # Rank 0 creates the file. It is deleted once all have mapped it, so none is left behind.
        path = [_create_file(length) if rank == 0 else None]
        dist.broadcast_object_list(path)
        memory = _map(path[0], length)
        mapped = [False] * world_size
        dist.all_gather_object(mapped, memory is not None)
        if path[0] and rank == 0:
            os.unlink(path[0])
        if memory is None or not all(mapped):
            return None
        return cls(parameters, memory, slice_size)

    def __init__(self, parameters: Tensor, memory: mmap.mmap, slice_size: int) -> None:
        self._rank, world_size = dist.get_rank(), dist.get_world_size()
        size, header = len(parameters), world_size * CACHE_LINE_BYTES
        self._count = 0
        self._counts = memoryview(memory)[:header].cast("q")
        vectors = torch.frombuffer(memory, dtype=torch.float32, offset=header)
        vectors = vectors.view(-1, slice_size * world_size)
        # Every worker copies its parameters: they are the same on all.
        self.parameters = vectors[0, :size].copy_(parameters)
        self.gradient = vectors[1 + self._rank, :size]
        start = min(size, slice_size * self._rank)
        self.own_slice = slice(start, min(size, start + slice_size))
        self._gradients = vectors[1:, self.own_slice]
        self.reduced = torch.zeros_like(parameters[self.own_slice])

    def reduce(self) -> None:
        self._barrier()
        torch.sum(self._gradients, 0, out=self.reduced)

    def all_gather(self) -> None:
        self._barrier()

    def _barrier(self) -> None:
        """Wait until all workers have called this method equally often."""
        self._count += 1
        self._counts[self._rank * CACHE_LINE_BYTES // 8] = self._count
        # It spins, because waking a sleeping thread takes longer than the wait. If another worker
        # has died, Ray Train ends this one.
        while min(self._counts[:: CACHE_LINE_BYTES // 8]) < self._count:
            os.sched_yield()


def _create_file(length: int) -> str | None:
    """Create a file of this length in memory; return its path, or None if it does not fit."""
    with suppress(OSError):
        handle, path = tempfile.mkstemp(dir=FOLDER)
        try:
            os.posix_fallocate(handle, 0, length)
            return path
        except OSError:
            os.unlink(path)
        finally:
            os.close(handle)
    return None


def _map(path: str | None, length: int) -> mmap.mmap | None:
    """Map the file into this process; return None if it is not on this node."""
    if path is None:
        return None
    with suppress(OSError), open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), length)
    return None
