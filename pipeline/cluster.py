"""Ray, started or joined in one place: its environment, token, resources and quiet logs."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ray
import ray.data
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.contract import ResourcesMissing, UserError
from pipeline.storage import Storage

PATIENCE_S = 8

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
    handler = signal.getsignal(signal.SIGTERM)
    _init()
    if threading.current_thread() is threading.main_thread():
        # Ray has put a handler of its own in the place of ours.
        signal.signal(signal.SIGTERM, handler)
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


def _init() -> None:
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(logging_level=logging.WARNING, log_to_driver=False)
        except (ValueError, ConnectionError):
            raise ResourcesMissing(
                f"No Ray cluster can be joined at RAY_ADDRESS {address!r}. Give HOST:PORT of its "
                "GCS, or unset it for a local Ray; to submit to http://HOST:8265, use "
                "infra/jobs/submit.sh."
            ) from None
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        # Without it, Ray joins whatever cluster was last started on this machine.
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )


def _prepare() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True


def results(work: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The rows that Ray Data makes, as they come; a UserError of a task is raised as itself."""
    failure = None
    try:
        yield from work.iter_rows()
    except RayTaskError as error:
        if not isinstance(error.cause, UserError):
            raise
        failure = error.cause
    if failure:
        # Who keeps the error would else keep Ray's frames, and with them actors and their CPUs;
        # and some of those hold each other.
        del work
        gc.collect()
        raise failure


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
        require_seen([storage.uri(marker)])
    finally:
        storage.delete(marker)


def require_seen(paths: Collection[str]) -> None:
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
