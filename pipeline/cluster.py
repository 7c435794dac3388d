"""Ray, started or joined in one place: its environment, token, resources and quiet logs."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ray
import ray.data
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.contract import ResourcesMissing, UserError

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}
"""Set before Ray starts, where the user has not. Ray Train's controller looks at its workers every
2 s by default, which is longer than a whole epoch here."""

OBJECT_STORE_BYTES = 512 << 20
"""Of a local Ray: stages pass file names through it, not images."""


_keep = ContextVar("keep", default=False)


@contextmanager
def connected() -> Iterator[None]:
    """A Ray to work on: the one already connected, the cluster at RAY_ADDRESS, or a local one.

    A local one takes this machine's CPUs and GPUs, is closed to other users by a token of its own,
    and ends with the block, whatever ends the block. The mode of authentication is left to Ray,
    which turns it on for a local cluster; setting it here would come too late, after its import.
    """
    if ray.is_initialized():
        yield
        return
    _prepare()
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    else:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        ray.init(
            # Without it, Ray joins whatever cluster was last started on this machine.
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    try:
        yield
    finally:
        if not _keep.get():
            ray.shutdown()


@contextmanager
def shared() -> Iterator[None]:
    """Lets all in the block share one Ray, which the first that needs one starts."""
    token = _keep.set(True)
    before = ray.is_initialized()
    try:
        yield
    finally:
        _keep.reset(token)
        if not before:
            ray.shutdown()


def _prepare() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True


def results(work: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The rows that Ray Data makes, as they come; a UserError of a task is raised as itself."""
    try:
        yield from work.iter_rows()
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def require(*, cpus: int = 0, gpus: int = 0) -> None:
    """ResourcesMissing where the cluster lacks them: Ray itself would wait for them for ever."""
    have = ray.cluster_resources()
    for unit, wanted in (("CPU", cpus), ("GPU", gpus)):
        if wanted > (found := int(have.get(unit, 0))):
            raise ResourcesMissing(
                f"{wanted} {unit}s were asked for, but the cluster has {found}. "
                "Ask for fewer workers, or add nodes."
            )


def require_shared(path: str) -> None:
    """ResourcesMissing where a node of the cluster does not see this local path."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    look = ray.remote(num_cpus=0)(os.path.exists)
    seen = ray.get(
        [
            look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(path)
            for node in nodes
        ]
    )
    if not all(seen):
        raise ResourcesMissing(
            f"{path} is seen by {sum(seen)} of {len(nodes)} nodes of the cluster. "
            "Use a folder or URI that all of them share."
        )


def num_cpus() -> int:
    """Whole CPUs of the cluster, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def num_gpus() -> int:
    """Whole GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))
