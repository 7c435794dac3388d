"""Whether torch can use the GPUs that Ray counts."""

from __future__ import annotations

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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


def _try_cuda() -> str:
    """Return what keeps torch from the GPU of this process, or nothing."""
    try:
        import torch

        torch.zeros(1, device="cuda")
    # A build of torch without CUDA raises AssertionError.
    except (ImportError, RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return ""
