"""Check that the cluster has the CPUs, GPUs and files that a stage needs, before it starts."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Collection
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.artifacts.storage import Storage
from pipeline.errors import ResourcesMissing

FREE_TIMEOUT_S = 8
"""Time for others to release resources: those of a stage that ended are free a moment later."""

PING_TIMEOUT_S = 3
"""Time for a node to run a task that does nothing."""


def require(*, cpus: int = 0, gpus: int = 0) -> None:
    """Raise ResourcesMissing if the cluster lacks CPUs or GPUs, or others keep holding them.

    Ray itself would wait: Ray Train for ever, Ray Data for half an hour.
    """
    for unit, wanted in (("CPU", cpus), ("GPU", gpus)):
        total = _count(ray.cluster_resources(), unit)
        asked = f"{wanted} {unit}s were" if wanted > 1 else f"1 {unit} was"
        if wanted > total:
            advice = "Ask for fewer workers, or add nodes."
            if unit == "GPU" and not total:
                advice = "Use the device cpu, or add a node with a GPU."
            raise ResourcesMissing(
                f"{asked} asked for, but the cluster has {total or 'none'}. {advice}"
            )
        deadline = time.monotonic() + FREE_TIMEOUT_S
        while wanted > (free := _count(ray.available_resources(), unit)):
            if time.monotonic() > deadline:
                raise ResourcesMissing(
                    f"{asked} asked for, but {total - free} of the cluster's {total} are held by "
                    "other jobs or servers. Wait for them, stop them, or ask for fewer workers."
                )
            time.sleep(0.1)


def wait_for_workers(most: int, fewest: int, *, cpus: int, gpus: int, timeout_s: float) -> int:
    """Return how many workers of these CPUs and GPUs the cluster holds, at most `most`.

    Wait for nodes that replace lost ones. Raise ResourcesMissing if after the time there is no room
    for the fewest.
    """
    deadline = time.monotonic() + timeout_s
    while (room := _room(cpus, gpus)) < most and time.monotonic() < deadline:
        time.sleep(0.5)
    if room < fewest:
        raise ResourcesMissing(
            f"Workers were lost, and after {timeout_s:.0f} s the cluster has room for {room} of "
            f"{most}. Run the same command again when nodes are back, to continue from the last "
            "checkpoint, or allow fewer workers with --train.min-workers."
        )
    return min(room, most)


def _room(cpus: int, gpus: int) -> int:
    """Return the number of workers of these CPUs and GPUs that the nodes hold that answer."""
    wanted = {unit: n for unit, n in (("CPU", cpus), ("GPU", gpus)) if n}
    free = ray.available_resources()
    on_nodes = sum(
        min(_count(node["Resources"], unit) // n for unit, n in wanted.items())
        for node in _answering_nodes()
    )
    return min(on_nodes, *(_count(free, unit) // n for unit, n in wanted.items()))


def _answering_nodes() -> list[dict[str, Any]]:
    """Return the nodes that answer at once; Ray takes a while to notice that one is gone."""
    ping = ray.remote(num_cpus=0, max_retries=0)(lambda: None)
    nodes = {
        ping.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node
        for node in ray.nodes()
        if node["Alive"]
    }
    answers, _ = ray.wait(list(nodes), num_returns=len(nodes), timeout=PING_TIMEOUT_S)
    return [nodes[answer] for answer in answers if not _failed(answer)]


def _failed(answer: ray.ObjectRef[None]) -> bool:
    try:
        ray.get(answer)
    except RayError:
        return True
    return False


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
