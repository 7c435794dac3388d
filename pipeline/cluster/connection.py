"""Start Ray on this machine or join a cluster, in one place for all stages and the server."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import ray

from pipeline.cluster import autoscaler, ray_hooks
from pipeline.errors import ResourcesMissing
from pipeline.process import signals

OBJECT_STORE_BYTES = 512 << 20
"""The object store of a local Ray is small: tasks put entries and
statistics into it, not images."""

CONNECT_TIMEOUT_S = 5
"""Time for the head of a cluster to accept a connection."""

_keep = ContextVar("keep", default=False)
_started_here = False


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
        with signals.own_handlers():
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


def may_grow() -> bool:
    """Return whether Ray may get more nodes: a local Ray does not."""
    return not _started_here


def _init() -> None:
    global _started_here
    _started_here = False
    if address := os.environ.get("RAY_ADDRESS"):
        _join(address)
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
    _started_here = True


def _join(address: str) -> None:
    no_answer = ResourcesMissing(
        f"No Ray cluster answers at RAY_ADDRESS {address!r}. Give HOST:PORT of its GCS and its "
        "RAY_AUTH_TOKEN, or unset it for a local Ray; to submit to http://HOST:8265, use "
        "python -m infra.jobs.submit."
    )
    if re.fullmatch(r"[\w.-]+:\d+", address):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError):
            # Ray itself would try for 20 s.
            raise no_answer from None
        if ray_hooks.refuses_token(address):
            token = (
                "this token" if os.environ.get("RAY_AUTH_TOKEN") else "a command without a token"
            )
            raise ResourcesMissing(
                f"The Ray cluster at {address!r} does not accept {token}. Set RAY_AUTH_MODE=token "
                "and RAY_AUTH_TOKEN to those that it was started with."
            )
    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        versions = re.findall(r"(?:Ray|Python): (\S+)", str(error))
        cluster, here = versions[:2], versions[2:]
        raise ResourcesMissing(
            f"The Ray cluster at {address!r} runs Ray {cluster[0]} with Python {cluster[1]}, and "
            f"this command Ray {here[0]} with Python {here[1]}. They must be the same: install "
            "the cluster's versions, or submit a job with python -m infra.jobs.submit."
        ) from None
    except (ValueError, ConnectionError):
        raise no_answer from None


def _shutdown() -> None:
    with signals.own_handlers():
        autoscaler.withdraw()
        ray.shutdown()


def _prepare() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray_hooks.quiet_authentication()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
