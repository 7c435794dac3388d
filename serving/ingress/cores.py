"""The core of HAProxy, which replicas leave free when there are more cores than replicas.

Left to itself the kernel wakes HAProxy on the core of the replica that answers it, which is busy:
with cores of their own, single images are served 25 % faster on two cores.
"""

from __future__ import annotations

import os

CORE_ENV = "PIPELINE_INGRESS_CORE"


def reserve_core(num_replicas: int) -> dict[str, str]:
    """Return the variable that names HAProxy's core, or nothing if there are too few cores."""
    cores = sorted(os.sched_getaffinity(0))
    return {CORE_ENV: str(cores[0])} if len(cores) > num_replicas else {}


def use_ingress_core() -> None:
    """Run this process on the reserved core alone."""
    if core := os.environ.get(CORE_ENV):
        os.sched_setaffinity(0, {int(core)})


def avoid_ingress_core() -> None:
    """Run this thread, and those that it starts, on the other cores."""
    if core := os.environ.get(CORE_ENV):
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {int(core)})
