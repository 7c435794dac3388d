"""Exchange gradients and updated parameters between data-parallel workers, in every step.

CPU workers of one node use memory that they share. Each worker sums the gradients of its own slice
of the parameter vector, and updates this slice alone (after ZeRO, Rajbhandari et al. 2020), so the
optimizer does not take longer with more workers. All other workers use torch.distributed's
all-reduce, and each updates the whole vector. gloo's all-reduce wakes threads; on virtual machines
that takes longer than a whole step of a small network.
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

CACHE_LINE_BYTES = 64

CACHE_LINE_FLOATS = CACHE_LINE_BYTES // 4


class GradientSync:
    """The parameters of all workers, a float32 vector, and this worker's gradient of them.

    All workers create it at once. In every step, each worker writes its gradient to `gradient`,
    calls `reduce`, updates `parameters[own_slice]` by `reduced`, and calls `all_gather`.
    """

    def __init__(self, parameters: Tensor) -> None:
        """Copy the parameters to shared memory if all workers can map it."""
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._memory: mmap.mmap | None = None
        # The barrier relies on writes becoming visible in their order, which only x86 guarantees.
        ordered = parameters.device.type == "cpu" and platform.machine() == "x86_64"
        if self._world_size > 1 and ordered and self._share(parameters):
            return
        self.parameters = parameters
        self.gradient = self.reduced = torch.zeros_like(parameters)
        self.own_slice = slice(0, len(parameters))

    def reduce(self) -> None:
        """Write the sum of all workers' gradients, added in the order of ranks, to `reduced`."""
        if self._memory:
            self._barrier()
            torch.sum(self._gradients, 0, out=self.reduced)
        elif self._world_size > 1:
            dist.all_reduce(self.gradient)

    def all_gather(self) -> None:
        """Wait until all workers have updated their slices of `parameters`."""
        if self._memory:
            self._barrier()

    def join(self, own: Tensor) -> Tensor:
        """Return the whole vector whose slice each worker holds; all must call it at once."""
        if not self._memory:
            return own
        slices: list[Tensor] = [own] * self._world_size
        dist.all_gather_object(slices, own)
        return torch.cat(slices)

    def _barrier(self) -> None:
        """Wait until all workers have called this method equally often."""
        self._count += 1
        self._counts[self._rank * CACHE_LINE_BYTES // 8] = self._count
        # It spins, because waking a sleeping thread takes longer than the wait. If another worker
        # has died, Ray Train ends this one.
        while min(self._counts[:: CACHE_LINE_BYTES // 8]) < self._count:
            os.sched_yield()

    def _share(self, parameters: Tensor) -> bool:
        """Map the same memory in all workers; return False if one is on another node.

        Layout: one int64 counter per worker, each in a cache line of its own; the parameters; the
        gradient of each worker. A vector is padded to a whole cache line per worker, so that no two
        workers write to the same line.
        """
        size = len(parameters)
        slice_size = -(-size // (self._world_size * CACHE_LINE_FLOATS)) * CACHE_LINE_FLOATS
        padded_size = slice_size * self._world_size
        header = self._world_size * CACHE_LINE_BYTES
        length = header + (1 + self._world_size) * padded_size * 4
        # Rank 0 creates the file. It is deleted once all have mapped it, so none is left behind.
        path = [_create_file(length) if self._rank == 0 else None]
        dist.broadcast_object_list(path)
        memory = _map(path[0], length)
        mapped = [False] * self._world_size
        dist.all_gather_object(mapped, memory is not None)
        if path[0] and self._rank == 0:
            os.unlink(path[0])
        if memory is None or not all(mapped):
            return False
        self._memory = memory
        self._count = 0
        self._counts = memoryview(memory)[:header].cast("q")
        vectors = torch.frombuffer(memory, dtype=torch.float32, offset=header).view(-1, padded_size)
        # Every worker copies its parameters: they are the same on all.
        self.parameters = vectors[0, :size].copy_(parameters)
        self.gradient = vectors[1 + self._rank, :size]
        start = min(size, slice_size * self._rank)
        self.own_slice = slice(start, min(size, start + slice_size))
        self._gradients = vectors[1:, self.own_slice]
        self.reduced = torch.zeros_like(parameters[self.own_slice])
        return True


def _create_file(length: int) -> str | None:
    """Create a file of this length in memory; return its path, or None if it does not fit."""
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
    """Map the file into this process; return None if it is not on this node."""
    if path is None:
        return None
    with suppress(OSError), open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), length)
    return None
