"""All that serving uses of Ray beyond its public interface."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import ClassVar

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.ingress.rules import (
    BUFFER_BYTES,
    ERRORS,
    MAX_BODY_ENV,
    MAX_CONNECTIONS,
    REPLY_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    frontend_rules,
    write_error_page,
)


class BypassProxyHandling:
    """Hands a request that reached the replica itself to its routes, past what Ray does for it.

    Ray's share is as long as theirs. The routes bound what waits, and count what they do.
    """

    replica: ClassVar[ASGIApp | None] = None

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Ray's own paths, such as that of its health check, begin with /-/.
        ours = scope["type"] == "http" and not scope["path"].startswith("/-/")
        app = BypassProxyHandling.replica if ours and BypassProxyHandling.replica else self._app
        await app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH: what Ray puts before its own handling."""
    return [Middleware(BypassProxyHandling)]


CORE = "PIPELINE_EDGE_CORE"
"""The core on which HAProxy runs and replicas do not, where there are more cores than replicas.

Left to itself the kernel wakes HAProxy on the core of the replica that answers it, which is busy.
"""


def ingress_environment(
    folder: Path, ports: list[int], *, max_body_bytes: int, num_replicas: int
) -> dict[str, str]:
    """What Ray Serve must find in its environment, before Ray starts, to use the edge.

    `folder` is for HAProxy's files, and four `ports` for what is asked on this machine alone.
    """
    cores = sorted(os.sched_getaffinity(0))
    core = {CORE: str(cores[0])} if len(cores) > num_replicas else {}
    metrics, stats, fallback, fallback_grpc = map(str, ports)
    return core | {
        # Ray makes its workers nicer than others by 15, so they wait where all cores are busy.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.ray_hooks.middlewares",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": fallback,
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": fallback_grpc,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.prefix, "bin", "serving-haproxy")),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": metrics,
        "RAY_SERVE_HAPROXY_STATS_PORT": stats,
        # Each request would be a line that Python parses; the replicas count requests themselves.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(MAX_CONNECTIONS),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        # HAProxy is replaced when three in a row have failed.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(REPLY_TIMEOUT_S),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(REPLY_TIMEOUT_S),
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
        # A prediction changes nothing, so it may be asked for twice.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "5",
        MAX_BODY_ENV: str(max_body_bytes),
    }


def avoid_ingress_core() -> None:
    """Leaves the edge its core: this thread, and those that it starts, use the others."""
    if core := os.environ.get(CORE):
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {int(core)})


def patch_config(configuration: str, folder: Path, *, max_body: str) -> str:
    """Ray's configuration with ours in its place; error pages are written to the folder.

    Ends the process where Ray's is not as it was, rather than start what is open to others.
    """
    pages = [f"    errorfile {status} {write_error_page(folder, status)}" for status in ERRORS]
    waits = f"    timeout http-request {REQUEST_TIMEOUT_S}s\n"
    for pattern, replacement in (
        (r"mode 666 level admin", "mode 600 level admin"),
        (r"(?<=    bind ):(?=\d+\n    mode http\n    http-request use-service)", "127.0.0.1:"),
        (r"(?<=  bind )\*:(?=\d+\n  stats enable)", "127.0.0.1:"),
        # A line to syslog for each request; the replicas say what went wrong.
        (r"^ *log \S+ local0 info\n", ""),
        (r"(?: *errorfile \d+ .*\n)+", "\n".join([*pages, waits])),
        # The application has all paths, so without a backend for one it is not there yet.
        (
            r"(?<=^backend default_backend\n)( *)http-request return .*",
            r"\1http-request deny deny_status 503",
        ),
        (r"(?<=^frontend http_frontend\n)( *bind .*\n)", r"\1" + frontend_rules(max_body)),
    ):
        configuration, count = re.subn(pattern, replacement, configuration, flags=re.M)
        if count != 1:
            raise SystemExit(f"{pattern!r} is {count} times in HAProxy's configuration, not once")
    # Without a replica there is no answer; Ray's proxy in Python would say so in words of its own.
    return re.sub(r"^ *server SERVE_PROXY_ACTOR.* backup\n", "", configuration, flags=re.M)
