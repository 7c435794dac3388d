"""Check that torch can use the GPUs that Ray counts, and that each worker has enough of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import ResourcesMissing

PROBE_TIMEOUT_S = 60
"""Time for a node to import torch and try its GPU."""


def find_unusable_gpus() -> str:
    """Return why torch cannot use the GPUs of some node, or nothing if it can use all.

    Ray counts the GPUs of a node without asking torch, whose build or driver may not know them. A
    node whose GPUs are all in use is not asked.
    """
    probe = ray.remote(num_cpus=0, num_gpus=1, max_retries=0)(_try_cuda)
    hosts = {
        probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) >= 1
    }
    answered, _ = ray.wait(list(hosts), num_returns=len(hosts), timeout=PROBE_TIMEOUT_S)
    for task, problem in zip(answered, ray.get(answered), strict=True):
        if problem:
            return f"torch cannot use the GPUs of {hosts[task]} ({problem})"
    return ""


def require_own_gpu(devices: Sequence[tuple[str, str]]) -> None:
    """Raise ResourcesMissing if two ranks share a GPU; `devices` has each rank's host and GPU id.

    nccl would fail with an error that does not say so.
    """
    ranks = defaultdict[tuple[str, str], list[int]](list)
    for rank, device in enumerate(devices):
        ranks[device].append(rank)
    for (host, gpu), sharing in ranks.items():
        if len(sharing) > 1:
            raise ResourcesMissing(
                f"Workers {', '.join(map(str, sharing))} share the GPU {gpu} of {host}, but each "
                "needs its own. Start Ray there with --num-gpus as many as the node has, and "
                "without RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES."
            )


def require_memory(needed: int, free: int) -> None:
    """Raise ResourcesMissing if a worker needs more bytes of GPU memory than are free."""
    if needed > free:
        raise ResourcesMissing(
            f"A worker needs {needed >> 20:,} MiB of GPU memory, but its GPU has {free >> 20:,} "
            "MiB free. Give a smaller --train.memory-mib or --train.batch-size, or use a GPU with "
            "more."
        )


def _try_cuda() -> str:
    """Return what keeps torch from the GPU of this process, or nothing."""
    try:
        import torch

        torch.zeros(1, device="cuda")
    # A build of torch without CUDA raises AssertionError.
    except (ImportError, RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return ""
