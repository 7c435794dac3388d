"""Wait until the cluster has room for the workers of a stage, and ask an autoscaler for nodes.

Ray itself would wait: Ray Train for ever, Ray Data for half an hour.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import autoscaler, connection
from pipeline.errors import ResourcesMissing

RELEASE_S = 8
"""Time for resources to become free: those of a stage that ended are free a moment later."""

QUIET_S = 1
"""Time before a wait is announced."""

ASK_AGAIN_S = 5
"""Time after which an autoscaler is asked again, because other jobs replace a request."""

PING_TIMEOUT_S = 3
"""Time for a node to run a task that does nothing."""

Bundle: TypeAlias = Mapping[str, int]
"""The resources of a worker: CPU, and GPU if it needs some."""

Nodes: TypeAlias = list[dict[str, Any]]

_LOGGER = logging.getLogger(__name__)


def require_workers(workers: int, *, cpus: int = 1, gpus: int = 0, wait_s: float) -> None:
    """Wait until the cluster has room for so many workers of these CPUs and GPUs.

    Raise ResourcesMissing if it has none after the time. A local Ray gets no more nodes, so it must
    hold them at once.
    """
    bundle = _bundle(cpus, gpus)
    advice = "Ask for fewer workers, or use the device cpu" if gpus else "Ask for fewer workers"
    nodes = _alive_nodes()
    if not connection.may_grow() and _room(nodes, bundle) < workers:
        raise ResourcesMissing(f"{_shortage(workers, bundle, nodes)}. {advice}.")
    wait_s = max(wait_s, RELEASE_S)
    if _wait_for_room(workers, bundle, wait_s, _alive_nodes) < workers:
        raise ResourcesMissing(
            f"{_shortage(workers, bundle, _alive_nodes())}, also after {wait_s:.0f} s. {advice}, "
            "add nodes, stop other jobs, or give an autoscaler more time with --wait."
        )


def wait_for_workers(most: int, fewest: int, *, cpus: int, gpus: int, wait_s: float) -> int:
    """Return how many workers of these CPUs and GPUs the cluster holds, at most `most`.

    Wait for nodes that replace lost ones. Raise ResourcesMissing if after the time there is no room
    for the fewest.
    """
    room = _wait_for_room(most, _bundle(cpus, gpus), wait_s, _answering_nodes)
    if room < fewest:
        raise ResourcesMissing(
            f"Workers were lost, and after {wait_s:.0f} s the cluster has room for {room} of "
            f"{most}. Run the same command again when nodes are back, to continue from the last "
            "checkpoint, or allow fewer workers with --train.min-workers."
        )
    return min(room, most)


def _wait_for_room(
    workers: int, bundle: Bundle, wait_s: float, find_nodes: Callable[[], Nodes]
) -> int:
    """Return the number of workers for which there is room: enough, or those after the time."""
    started, announced, asked_at = time.monotonic(), False, -math.inf
    try:
        while (room := _free_room(nodes := find_nodes(), bundle)) < workers:
            now = time.monotonic()
            if now - started > wait_s:
                break
            if now - started > QUIET_S and not announced:
                announced = True
                shortage = _shortage(workers, bundle, nodes)
                _LOGGER.warning("%s; waiting up to %.0f s", shortage, wait_s)
            if announced and now - asked_at > ASK_AGAIN_S:
                asked_at = now
                autoscaler.ask([dict(bundle)] * workers + _held(bundle, nodes))
            time.sleep(0.2)
    finally:
        autoscaler.withdraw()
    return room


def _held(bundle: Bundle, nodes: Nodes) -> list[dict[str, int]]:
    """Return what other workers hold: an autoscaler sizes a cluster as if it were idle."""
    free = ray.available_resources()
    return [{unit: 1} for unit in bundle for _ in range(_total(nodes, unit) - _count(free, unit))]


def _bundle(cpus: int, gpus: int) -> Bundle:
    return {unit: n for unit, n in (("CPU", cpus), ("GPU", gpus)) if n}


def _shortage(workers: int, bundle: Bundle, nodes: Nodes) -> str:
    """Return what was asked for, and what of it the nodes have."""
    free = ray.available_resources()
    for unit, each in bundle.items():
        wanted, total = each * workers, _total(nodes, unit)
        asked = f"{wanted} {unit}s were asked for" if wanted > 1 else f"1 {unit} was asked for"
        if wanted > total:
            return f"{asked}, but the cluster has {total or 'none'}"
        if wanted > _count(free, unit):
            held = total - _count(free, unit)
            return f"{asked}, but {held} of the cluster's {total} are held by other jobs or servers"
    worker = " and ".join(f"{n} {unit}{'s' * (n > 1)}" for unit, n in bundle.items())
    return (
        f"{workers} workers of {worker} each were asked for, but the nodes of the cluster hold "
        f"{_room(nodes, bundle)}"
    )


def _free_room(nodes: Nodes, bundle: Bundle) -> int:
    """Return the number of workers that the nodes hold, and for which resources are free."""
    free = ray.available_resources()
    return min(_room(nodes, bundle), *(_count(free, unit) // n for unit, n in bundle.items()))


def _room(nodes: Nodes, bundle: Bundle) -> int:
    """Return the number of workers that the nodes hold when nothing else runs on them."""
    return sum(
        min(_count(node["Resources"], unit) // n for unit, n in bundle.items()) for node in nodes
    )


def _total(nodes: Nodes, unit: str) -> int:
    return sum(_count(node["Resources"], unit) for node in nodes)


def _alive_nodes() -> Nodes:
    return [node for node in ray.nodes() if node["Alive"]]


def _answering_nodes() -> Nodes:
    """Return the nodes that answer at once; Ray takes a while to notice that one is gone."""
    ping = ray.remote(num_cpus=0, max_retries=0)(lambda: None)
    nodes = {
        ping.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node
        for node in _alive_nodes()
    }
    answers, _ = ray.wait(list(nodes), num_returns=len(nodes), timeout=PING_TIMEOUT_S)
    return [nodes[answer] for answer in answers if not _failed(answer)]


def _failed(answer: ray.ObjectRef[None]) -> bool:
    try:
        ray.get(answer)
    except RayError:
        return True
    return False


def _count(resources: Mapping[str, float], unit: str) -> int:
    return int(resources.get(unit, 0))
