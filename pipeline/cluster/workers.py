"""Wait until the cluster has room for the workers of a stage, and ask an autoscaler for nodes.

Ray itself would wait: Ray Train for ever, Ray Data for half an hour.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import connection
from pipeline.errors import ResourcesMissing

RELEASE_S = 8
"""Time for resources to become free: those of a stage that ended are free a moment later."""

QUIET_S = 1
"""Time before a wait is announced."""

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
    grows = connection.may_grow()
    if not grows and _room(_alive_nodes(), bundle) < workers:
        raise ResourcesMissing(f"{_shortage(workers, bundle)}. {advice}.")
    wait_s = wait_s if grows else max(wait_s, RELEASE_S)
    if _wait_for_room(workers, bundle, wait_s, _alive_nodes) < workers:
        raise ResourcesMissing(
            f"{_shortage(workers, bundle)}, also after {wait_s:.0f} s. {advice}, add nodes, stop "
            "other jobs, or give an autoscaler more time with --wait."
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
    started, announced = time.monotonic(), False
    with _requested(workers, bundle) as request:
        while (room := _free_room(find_nodes(), bundle)) < workers:
            waited = time.monotonic() - started
            if waited > wait_s:
                break
            if waited > QUIET_S and not announced:
                announced = True
                request()
                _LOGGER.warning("%s; waiting up to %.0f s", _shortage(workers, bundle), wait_s)
            time.sleep(0.2)
    return room


@contextmanager
def _requested(workers: int, bundle: Bundle) -> Iterator[Callable[[], None]]:
    """Yield a function that asks an autoscaler for the workers, until the block ends.

    Other clusters ignore that.
    """
    requested = False

    def request() -> None:
        nonlocal requested
        requested = True
        _request([dict(bundle)] * workers)

    try:
        yield request
    finally:
        if requested:
            _request([])


def _request(bundles: list[dict[str, int]]) -> None:
    # Imported late, because it is slow and most runs wait for nothing.
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


def _bundle(cpus: int, gpus: int) -> Bundle:
    return {unit: n for unit, n in (("CPU", cpus), ("GPU", gpus)) if n}


def _shortage(workers: int, bundle: Bundle) -> str:
    """Return what was asked for, and what of it the cluster has."""
    nodes, free = _alive_nodes(), ray.available_resources()
    for unit, each in bundle.items():
        wanted, total = each * workers, sum(_count(node["Resources"], unit) for node in nodes)
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
