"""Start Ray on this machine or join a cluster, in one place for all stages and the server."""

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
from pipeline.process import signals

OBJECT_STORE_BYTES = 512 << 20
"""The object store of a local Ray is small: tasks put entries and
statistics into it, not images."""

_keep = ContextVar("keep", default=False)


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray: keep a connection, join the cluster at RAY_ADDRESS, or start a local Ray.

    A local Ray takes this machine's CPUs and GPUs and ends with the block. A token of its own
    closes it to other users; Ray turns token authentication on for a local cluster by itself.
    """
    if ray.is_initialized():
        yield
        return
    _prepare()
    try:
        with _own_handler():
            _init()
        yield
    finally:
        if not _keep.get():
            _shutdown()


@contextmanager
def shared() -> Iterator[None]:
    """Let all stages in the block share one Ray, which the first that needs one starts."""
    token = _keep.set(True)
    before = ray.is_initialized()
    try:
        yield
    finally:
        _keep.reset(token)
        if not before:
            _shutdown()


@contextmanager
def _own_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces by its own, and removes when it ends.

    Raise KeyboardInterrupt if the signal comes to Ray's handler, which exits.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        signals.interrupt(signal.SIGTERM, None)
    finally:
        if threading.current_thread() is threading.main_thread() and not signals.interrupted():
            signal.signal(signal.SIGTERM, handler)


def _init() -> None:
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(logging_level=logging.WARNING, log_to_driver=False)
        except (ValueError, ConnectionError):
            raise ResourcesMissing(
                f"No Ray cluster answers at RAY_ADDRESS {address!r}. Give HOST:PORT of its "
                "GCS, or unset it for a local Ray; to submit to http://HOST:8265, use "
                "infra/jobs/submit.sh."
            ) from None
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with ray_hooks.own_process_group():
        ray.init(
            # Otherwise Ray joins the cluster that was last started on this machine.
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )


def _shutdown() -> None:
    with _own_handler():
        ray.shutdown()


def _prepare() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray_hooks.quiet_authentication()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
