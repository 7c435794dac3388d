"""Exchange gradients and updated parameters between data-parallel CPU workers, in every step.

Each worker sums the gradients of its own slice of the parameter vector, and updates this slice
alone (after ZeRO, Rajbhandari et al. 2020), so the optimizer does not take longer with more
workers. Workers of one node use memory that they share (`shared_memory`), others connections of
their own (`ring`): torch.distributed's gloo wakes threads, which on virtual machines takes longer
than a whole step of a small network.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class GradientSync:
    """The parameters of all workers, a float32 vector, and this worker's gradient of them.

    All workers create it at once. In every step, each worker writes its gradient to `gradient`,
    calls `reduce`, updates `parameters[own_slice]` by `reduced`, and calls `all_gather`. This class
    is that of a single worker.
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.gradient = self.reduced = torch.zeros_like(parameters)
        self.own_slice = slice(0, len(parameters))

    def reduce(self) -> None:
        """Write the sum of all workers' gradients of the own slice to `reduced`."""

    def all_gather(self) -> None:
        """Give all workers the slices of `parameters` that each has updated."""

    def join(self, own: Tensor) -> Tensor:
        """Return the whole vector whose slice each worker holds; all must call it at once."""
        if len(own) == len(self.parameters):
            return own
        slices: list[Tensor] = [own] * dist.get_world_size()
        dist.all_gather_object(slices, own)
        return torch.cat(slices)


def create_gradient_sync(parameters: Tensor) -> GradientSync:
    """Return the way of exchange for this group of workers; they must call it at once."""
    from pipeline.training.kernels.ring import RingSync
    from pipeline.training.kernels.shared_memory import SharedMemorySync

    if dist.get_world_size() == 1:
        return GradientSync(parameters)
    return SharedMemorySync.create(parameters) or RingSync(parameters)
