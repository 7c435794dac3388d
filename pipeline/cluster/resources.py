"""Check that the cluster has the CPUs, GPUs and files that a stage needs, before it starts."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Collection

import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.artifacts.storage import Storage
from pipeline.errors import ResourcesMissing

PATIENCE_S = 8


def require(*, cpus: int = 0, gpus: int = 0) -> None:
    """ResourcesMissing where the cluster lacks them, or where others hold them and do not let go.

    Ray itself would wait for them: Train for ever, Data for half an hour.
    """
    for unit, wanted in (("CPU", cpus), ("GPU", gpus)):
        if wanted > (found := _count(ray.cluster_resources(), unit)):
            raise ResourcesMissing(
                f"{wanted} {unit}s were asked for, but the cluster has {found}. "
                "Ask for fewer workers, or add nodes."
            )
        deadline = time.monotonic() + PATIENCE_S
        while wanted > (free := _count(ray.available_resources(), unit)):
            if time.monotonic() > deadline:
                raise ResourcesMissing(
                    f"{wanted} {unit}s were asked for, but {found - free} of the cluster's {found} "
                    "are held by other jobs or servers. Wait for them, stop them, or ask for fewer "
                    "workers."
                )
            time.sleep(0.1)


def require_shared(storage: Storage, folder: str = "") -> None:
    """ResourcesMissing where a node of the cluster does not see this local storage to write to."""
    if not storage.is_local:
        return
    marker = f"{folder}/.shared-{uuid.uuid4().hex}".lstrip("/")
    storage.write(marker, b"")
    try:
        require_visible([storage.uri(marker)])
    finally:
        storage.delete(marker)


def require_visible(paths: Collection[str]) -> None:
    """ResourcesMissing where a node of the cluster does not see one of these local files."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    look = ray.remote(num_cpus=0)(lambda: [path for path in paths if not os.path.exists(path)])
    missing = [
        look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    ]
    if missed := Counter(path for found in ray.get(missing) for path in found):
        ((path, count),) = missed.most_common(1)
        raise ResourcesMissing(
            f"{path} is seen by {len(nodes) - count} of {len(nodes)} nodes of the cluster. "
            "Use a folder or URI that all of them share."
        )


def num_free_cpus() -> int:
    """Whole CPUs that nobody holds, at least 1."""
    return max(1, _count(ray.available_resources(), "CPU"))


def num_gpus() -> int:
    """Whole GPUs of the cluster."""
    return _count(ray.cluster_resources(), "GPU")


def _count(resources: dict[str, float], unit: str) -> int:
    return int(resources.get(unit, 0))
