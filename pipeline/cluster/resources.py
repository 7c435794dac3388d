"""Check that the nodes of the cluster have the memory and see the files that a stage needs."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Collection

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.artifacts.storage import Storage
from pipeline.errors import ResourcesMissing


def require_memory(memory: int, advice: str) -> None:
    """Raise ResourcesMissing if no node has so many bytes of memory for a task."""
    most = max(int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])
    if memory > most:
        raise ResourcesMissing(
            f"A task needs {memory >> 20:,} MiB of memory, but no node of the cluster has more "
            f"than {most >> 20:,} MiB for tasks. Give {advice}, or add a node with more."
        )


def require_shared(storage: Storage, folder: str = "") -> None:
    """Raise ResourcesMissing if any node cannot see this local storage to write to."""
    if not storage.is_local:
        return
    marker = f"{folder}/.shared-{uuid.uuid4().hex}".lstrip("/")
    storage.write(marker, b"")
    try:
        require_visible([storage.uri(marker)])
    finally:
        storage.delete(marker)


def require_visible(paths: Collection[str]) -> None:
    """Raise ResourcesMissing if any node of the cluster cannot see one of these local files."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    find_missing = ray.remote(num_cpus=0)(
        lambda: [path for path in paths if not os.path.exists(path)]
    )
    missing_by_node = [
        find_missing.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    ]
    counts = Counter(path for missing in ray.get(missing_by_node) for path in missing)
    if counts:
        ((path, count),) = counts.most_common(1)
        raise ResourcesMissing(
            f"{path} is seen by {len(nodes) - count} of {len(nodes)} nodes of the cluster. "
            "Use a folder or URI that all of them share."
        )


def num_nodes() -> int:
    """Return the number of nodes of the cluster."""
    return sum(node["Alive"] for node in ray.nodes())


def num_cpus() -> int:
    """Return the number of whole CPUs of the cluster, at least 1."""
    return max(1, _count(ray.cluster_resources(), "CPU"))


def num_free_cpus() -> int:
    """Return the number of whole free CPUs, at least 1."""
    return max(1, _count(ray.available_resources(), "CPU"))


def num_gpus() -> int:
    """Return the number of whole GPUs of the cluster."""
    return _count(ray.cluster_resources(), "GPU")


def num_free_gpus() -> int:
    """Return the number of whole free GPUs, at least 1."""
    return max(1, _count(ray.available_resources(), "GPU"))


def _count(resources: dict[str, float], unit: str) -> int:
    return int(resources.get(unit, 0))
