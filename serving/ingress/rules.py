"""The rules by which HAProxy refuses a request before its body is read, and its error pages."""

from __future__ import annotations

import json
from pathlib import Path

BUFFER_BYTES = 1 << 16
"""Bodies up to this size are sent again to another replica where one dies over them."""

MAX_CONNECTIONS = 1024

MAX_URI_BYTES, MAX_HEADER_BYTES = 8192, 32_768

REQUEST_TIMEOUT_S, REPLY_TIMEOUT_S = 10, 30

MAX_BODY = "PIPELINE_MAX_BODY_BYTES"

ERRORS = {
    400: "The request is not HTTP/1.1 as RFC 9112 has it.",
    408: f"The request was not whole within {REQUEST_TIMEOUT_S} seconds. Send it again.",
    500: "The server failed on this request. Its log says why.",
    502: "The server failed on this request. Send it again.",
    503: "The server is not ready. Send the request again in a second.",
    504: f"The server did not answer within {REPLY_TIMEOUT_S} seconds. Send the request again.",
}
"""What HAProxy itself answers, by status."""

REJECT_RULES = (
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


def frontend_rules(max_body: str) -> str:
    values = {"max_body": max_body}
    lines = ["option disable-h2-upgrade"]
    for status, condition, message in REJECT_RULES:
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


def write_error_page(folder: Path, status: int) -> Path:
    """The file of an answer as HAProxy sends it."""
    body = json.dumps({"error": ERRORS[status]})
    head = [f"HTTP/1.1 {status} Error", "Content-Type: application/json", "Connection: close"]
    if status == 503:
        head.append("Retry-After: 1")
    head += [f"Content-Length: {len(body)}", "", body]
    path = folder / f"{status}.json.http"
    path.write_text("\r\n".join(head))
    return path
