"""Ray, started or joined in one place: its environment, token, resources and quiet logs."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import ray

from pipeline.cluster import ray_hooks
from pipeline.errors import ResourcesMissing

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
    ray_hooks.quiet_authentication()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
