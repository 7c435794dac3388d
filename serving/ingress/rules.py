"""The rules by which HAProxy rejects a request before its body is read, and its error pages."""

from __future__ import annotations

import json
from pathlib import Path

BUFFER_BYTES = 1 << 16
"""HAProxy's buffer. If a replica dies, requests that fit are sent again to another replica."""

MAX_CONNECTIONS = 1024

MAX_URI_BYTES = 8192

MAX_HEADER_BYTES = 32_768

REQUEST_TIMEOUT_S = 10
"""Time for a whole request to arrive, headers and body."""

REPLY_TIMEOUT_S = 30

MAX_BODY_ENV = "PIPELINE_MAX_BODY_BYTES"
"""The environment variable by which HAProxy's process learns the bound of a body."""

ERRORS = {
    400: "The request is not valid HTTP/1.1 (RFC 9112).",
    408: f"The request was not complete after {REQUEST_TIMEOUT_S} seconds. Send it again.",
    500: "The server failed on this request. Its log says why.",
    502: "The server failed on this request. Send it again.",
    503: "The server is not ready. Send the request again in a second.",
    504: f"The server did not answer within {REPLY_TIMEOUT_S} seconds. Send the request again.",
}
"""The messages of HAProxy's own error pages, by status."""

REJECT_RULES = (
    (505, "!{ req.ver 1.0 1.1 }", "The request is neither HTTP/1.0 nor HTTP/1.1."),
    (
        400,
        "{ req.ver 1.1 } !{ req.hdr_cnt(host) eq 1 }",
        "The request must have one Host header.",
    ),
    (405, "{ method CONNECT }", "This server is not a proxy."),
    (
        405,
        "!{ method GET HEAD POST PUT PATCH DELETE OPTIONS TRACE }",
        "The server does not know this method.",
    ),
    # `OPTIONS *` has a target that is not a path.
    (404, "!{ path_beg / }", "No route has this address."),
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
        "The only supported expectation is 100-continue.",
    ),
    (
        431,
        f"{{ req.hdrs,length gt {MAX_HEADER_BYTES} }}",
        f"The headers are larger than {MAX_HEADER_BYTES} bytes.",
    ),
)
"""Status, HAProxy condition (ACL) and message of each rule.

To add one: append it here. The first rule whose condition holds answers.
"""

ALLOW = 'hdr allow "GET, POST"'

IGNORED_HEADERS = (
    # An offer of another protocol, which a server may ignore (RFC 9110, 7.8).
    "upgrade",
    # By these a client could change how Ray handles its request.
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "x-session-id",
    "serve_multiplexed_model_id",
    "serve-multiplexed-model-id",
)
"""Headers that are removed from requests."""

REQUEST_ID = "x-request-id"
"""A client's own ID is kept if it is valid; otherwise HAProxy sets a UUID."""

_VALID_ID = "^[A-Za-z0-9._-]{1,64}$"


def frontend_rules(max_body: str) -> str:
    """Return the lines of HAProxy's frontend; `max_body` is the largest body in bytes."""
    values = {"max_body": max_body}
    lines = ["option disable-h2-upgrade"]
    for status, condition, message in REJECT_RULES:
        body = json.dumps({"error": message % values})
        lines.append(
            f"http-request return status {status} content-type application/json "
            f"string '{body}' {ALLOW if status == 405 else ''} if {condition % values}"
        )
    # Buffer the body, so that it can be sent again if a replica dies.
    lines.append(f"http-request wait-for-body time {REQUEST_TIMEOUT_S}s")
    lines += [f"http-request del-header {name}" for name in IGNORED_HEADERS]
    lines += [
        "http-request set-var(txn.id) uuid",
        f"http-request set-var(txn.id) req.hdr({REQUEST_ID}) "
        f"if {{ req.hdr({REQUEST_ID}) -m reg {_VALID_ID} }} {{ req.hdr_cnt({REQUEST_ID}) eq 1 }}",
        f"http-request set-header {REQUEST_ID} %[var(txn.id)]",
        f"http-after-response set-header {REQUEST_ID} %[var(txn.id)] if {{ var(txn.id) -m found }}",
    ]
    return "".join(f"    {line}\n" for line in lines)


def write_error_page(folder: Path, status: int) -> Path:
    """Write an error page as the HTTP response that HAProxy sends; return its path."""
    body = json.dumps({"error": ERRORS[status]})
    head = [f"HTTP/1.1 {status} Error", "Content-Type: application/json", "Connection: close"]
    if status == 503:
        head.append("Retry-After: 1")
    head += [f"Content-Length: {len(body)}", "", body]
    path = folder / f"{status}.json.http"
    path.write_text("\r\n".join(head))
    return path
