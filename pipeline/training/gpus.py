"""Check that torch can use the GPUs that Ray counts, and that each worker has enough of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.artifacts.manifests import DatasetManifest
from pipeline.errors import ResourcesMissing

PROBE_TIMEOUT_S = 60
"""Time for a node to import torch and try its GPU."""


def find_unusable_gpus() -> str:
    """Return why torch cannot use the GPUs of some node, or nothing if it can use all.

    Ray counts the GPUs of a node without asking torch, whose build or driver may not know them. A
    node whose GPUs are all in use does not answer in time.
    """
    probe = ray.remote(num_cpus=0, num_gpus=1, max_retries=0)(_try_cuda)
    hosts = {
        probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) >= 1
    }
    answered, waiting = ray.wait(list(hosts), num_returns=len(hosts), timeout=PROBE_TIMEOUT_S)
    for task in waiting:
        ray.cancel(task)
    for task, problem in zip(answered, ray.get(answered), strict=True):
        if problem:
            return f"torch cannot use the GPUs of {hosts[task]} ({problem})"
    return ""


def require_memory(dataset: DatasetManifest, memory_bytes: int, free: int) -> None:
    """Raise ResourcesMissing if a GPU with so many free bytes cannot hold a worker's images.

    A worker holds of `train` and `val` up to `memory_bytes` each.
    """
    pixels = dataset.image.num_pixels
    needed = sum(min(dataset.rows[split] * pixels, memory_bytes) for split in ("train", "val"))
    if needed > free:
        raise ResourcesMissing(
            f"A worker holds {needed >> 20:,} MiB of images, but its GPU has {free >> 20:,} MiB "
            "free. Give a smaller --train.memory-mib, to stream them, or use a GPU with more."
        )


@contextmanager
def explained_errors() -> Iterator[None]:
    """Raise ResourcesMissing for errors of torch about a GPU that is too small or shared."""
    import torch
    from torch.distributed import DistBackendError

    try:
        yield
    except torch.OutOfMemoryError as error:
        needed = "; ".join(str(error).split(". ")[1:3])
        raise ResourcesMissing(
            f"The memory of a worker's GPU is too small: {needed}. Give a smaller "
            "--train.batch-size or --train.memory-mib, or use a GPU with more."
        ) from None
    except DistBackendError as error:
        if "Duplicate GPU" not in str(error):
            raise
        raise ResourcesMissing(
            "Two workers share a GPU, but each needs its own. Start Ray on each node with "
            "--num-gpus as many as it has, and without RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES."
        ) from None


def _try_cuda() -> str:
    """Return what keeps torch from the GPU of this process, or nothing."""
    try:
        import torch

        torch.zeros(1, device="cuda")
    # A build of torch without CUDA raises AssertionError.
    except (ImportError, RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0].rstrip(".")
    return ""
