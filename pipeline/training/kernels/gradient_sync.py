"""What workers give each other in a step: gradients, and the parameters that each has updated.

CPU workers of one node do it in memory that they share. Each sums the gradients of its part of the
vector, and updates this part alone (after ZeRO, Rajbhandari et al. 2020): an optimizer step takes
as little of the time of many workers as of one. gloo hands every sum from thread to thread; where
waking one is slow, as on virtual machines, that costs more than a step. Other workers sum by
torch.distributed, and each updates all.
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

LINE_FLOATS = LINE_BYTES // 4


class GradientSync:
    """The parameters of all workers, a float32 vector, and the gradient of each.

    Made by all workers at once; then in every step each writes to `gradient`, calls `reduce`,
    updates `parameters[part]` by `reduced`, and calls `gather`.
    """

    def __init__(self, parameters: Tensor) -> None:
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._turn = 0
        self._memory: mmap.mmap | None = None
        # Of an x86 alone it is sure that others see the vector before the turn written after it.
        cpu = parameters.device.type == "cpu" and platform.machine() == "x86_64"
        if self._world_size > 1 and cpu and self._share(parameters):
            return
        self.parameters = parameters
        self.gradient = self.reduced = torch.zeros_like(parameters)
        self.part = slice(0, len(parameters))

    def reduce(self) -> None:
        """Writes to `reduced` the sum of the gradients of all workers, in the order of ranks."""
        if self._memory:
            self._wait()
            torch.sum(self._gradients, 0, out=self.reduced)
        elif self._world_size > 1:
            dist.all_reduce(self.gradient)

    def all_gather(self) -> None:
        """Has the parts that the others updated in `parameters`, the same bits on each."""
        if self._memory:
            self._wait()

    def join(self, part: Tensor) -> Tensor:
        """The whole of a vector of which each worker holds its part; for all workers at once."""
        if not self._memory:
            return part
        parts: list[Tensor] = [part] * self._world_size
        dist.all_gather_object(parts, part)
        return torch.cat(parts)

    def _wait(self) -> None:
        """Until all workers are here."""
        self._turn += 1
        self._turns[self._rank * LINE_BYTES // 8] = self._turn
        # Spinning, as a sleeping thread would be woken too late. Ray ends us if a peer has died.
        while min(self._turns[:: LINE_BYTES // 8]) < self._turn:
            os.sched_yield()

    def _share(self, parameters: Tensor) -> bool:
        """Maps memory for all workers, unless one of them does not see it: another node's."""
        size = len(parameters)
        # Whole lines of the cache, so that no two workers write to one.
        each = -(-size // (self._world_size * LINE_FLOATS)) * LINE_FLOATS
        room = each * self._world_size
        header = self._world_size * LINE_BYTES
        length = header + (1 + self._world_size) * room * 4
        path = [_make_file(length) if self._rank == 0 else None]
        dist.broadcast_object_list(path)
        memory = _map(path[0], length)
        seen = [False] * self._world_size
        dist.all_gather_object(seen, memory is not None)
        if path[0] and self._rank == 0:
            os.unlink(path[0])
        if memory is None or not all(seen):
            return False
        self._memory = memory
        self._turns = memoryview(memory)[:header].cast("q")
        vectors = torch.frombuffer(memory, dtype=torch.float32, offset=header).view(-1, room)
        self.parameters = vectors[0, :size].copy_(parameters)
        self.gradient = vectors[1 + self._rank, :size]
        self.part = slice(min(size, each * self._rank), min(size, each * (self._rank + 1)))
        self._gradients = vectors[1:, self.part]
        self.reduced = torch.zeros_like(parameters[self.part])
        return True


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
