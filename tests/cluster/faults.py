"""Faults of the nodes of a testbed, and what they cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.testbed import cluster
from infra.testbed.cluster import Cluster
from infra.testbed.namespaces import Node

SLOW_S, SLOWED_S = 0.2, 10
"""Delay of a slowed cable each way, and for how long it is slow."""

COSTS = list[tuple[str, str, str]]()
"""Stage, fault and what came of it, for the table at the end of the tests."""


@contextmanager
def apart(nodes: int, shared: Path) -> Iterator[Cluster]:
    """Start a head without CPUs, which no fault meets, and nodes of one CPU each."""
    with cluster.started(1, cpus=0, shared=shared) as testbed:
        testbed.cpus = 1
        for _ in range(nodes):
            testbed.add_node()
        yield testbed


def note(stage: str, fault: str, result: str) -> None:
    """Add a line to the table of faults."""
    COSTS.append((stage, fault, result))


def slow(node: Node) -> None:
    """Slow the cable for as long as `caused` says, or until it ends."""
    node.slow(SLOW_S)


def fill_disk(node: Node) -> None:
    """Fill the node's own disk, which holds Ray's files, until `caused` ends."""
    filled = node.run("dd", "if=/dev/zero", "of=/tmp/full", "bs=1M")
    assert "No space left" in filled.stderr


@contextmanager
def caused(
    testbed: Cluster, fault: Callable[[Node], None], node: Node, *, slowed_s: float = SLOWED_S
) -> Iterator[None]:
    """Cause a fault of a node; at the end of the block, boot the node again if it was lost."""
    timer = threading.Timer(slowed_s, node.restore)
    try:
        fault(node)
        if fault is slow:
            timer.start()
        yield
    finally:
        timer.cancel()
        if fault in (Node.kill, Node.cut):
            node.kill()
            node.boot()
            testbed.start_ray(node)
        elif fault is slow:
            node.restore()
        elif fault is fill_disk:
            node.run("rm", "/tmp/full")
