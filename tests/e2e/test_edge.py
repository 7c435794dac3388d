"""Hostile requests and malformed HTTP, sent byte by byte to the server as users start it.

Each has the exact status of its answer, and the server still answers after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import pytest

from tests.support.hostile_requests import REQUESTS, address_to
from tests.support.processes import wait_for
from tests.support.raw_http import Reply, read_replies
from tests.support.servers import Server, started
from tests.support.stripes_model import STRIPES

PATIENCE_S = 20
PIXELS = np.zeros(STRIPES.num_pixels, np.uint8).tobytes()
PATH = "/v2/models/stripes/infer"
RAW = b"Inference-Header-Content-Length: 0\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(
        str(tmp_path_factory.mktemp("root")), "--max-body-mib", 1, "--max-request-rows", 16
    ) as server:
        yield server


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url("/"))
    return socket.create_connection((str(address.hostname), address.port or 0), PATIENCE_S)


def send(server: Server, data: bytes) -> list[Reply]:
    """Send bytes; return the replies until the server closes, or sends nothing for 0.3 s."""
    with connect(server) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
        return read_replies(client)


def is_live(server: Server) -> bool:
    return httpx.get(server.url("/v2/health/live"), timeout=5).status_code == 200


def post(
    headers: bytes = b"",
    body: bytes = PIXELS,
    *,
    line: bytes = f"POST {PATH} HTTP/1.1".encode(),
    host: bytes = b"Host: localhost\r\n",
    length: bytes | None = None,
) -> bytes:
    size = b"Content-Length: %d\r\n" % len(body) if length is None else length
    return line + b"\r\n" + host + RAW + size + headers + b"\r\n" + body


def chunked(*chunks: bytes, coding: bytes = b"chunked", end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end
    return post(body=body, length=b"Transfer-Encoding: %s\r\n" % coding)


GET = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"

REJECTED: dict[str, tuple[bytes, int | tuple[int, ...]]] = {
    "Content-Length over the bound": (
        post(body=b"", length=b"Content-Length: 10737418240\r\n"),
        413,
    ),
    "body of 50,000 chunks": (chunked(*[b"x"] * 50_000), 400),
    "no Host header": (post(host=b""), 400),
    "version HTTP/2.0": (post(line=f"POST {PATH} HTTP/2.0".encode()), (400, 505)),
    "version HTTP/1.9": (post(line=f"POST {PATH} HTTP/1.9".encode()), (400, 505)),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9, (400, 405, 505)),
    "unknown method": (post(line=f"BREW {PATH} HTTP/1.1".encode()), 405),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405),
    "TRACE": (post(line=f"TRACE {PATH} HTTP/1.1".encode()), 405),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", (404, 405)),
    "Content-Length over the bound with Expect": (
        post(b"Expect: 100-continue\r\n", b"", length=b"Content-Length: 10737418240\r\n"),
        413,
    ),
    "URL of 10 KB": (post(line=b"POST /" + b"a" * 10_000 + b" HTTP/1.1"), 414),
    "headers of 40 KB": (post(b"X-A: %s\r\n" % (b"a" * 40_000)), 431),
    "unknown expectation": (post(b"Expect: x\r\n"), 417),
    "WebSocket upgrade": (
        f"GET {PATH} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode(),
        (400, 403, 404, 405, 426),
    ),
}

MALFORMED: dict[str, bytes] = {
    "API key of 1 MiB": post(b"Authorization: Bearer %s\r\n" % (b"k" * (1 << 20))),
    "two Content-Lengths": post(b"Content-Length: 7\r\n"),
    "Content-Length -1": post(length=b"Content-Length: -1\r\n"),
    "Content-Length +3": post(length=b"Content-Length: +3\r\n"),
    "Content-Length 0x3": post(length=b"Content-Length: 0x3\r\n"),
    "Content-Length of 20 digits": post(length=b"Content-Length: 99999999999999999999\r\n"),
    "coding gzip, chunked": chunked(PIXELS, coding=b"gzip, chunked"),
    "coding xchunked": chunked(PIXELS, coding=b"xchunked"),
    "coding identity": chunked(PIXELS, coding=b"identity"),
    "coding chunked, identity": chunked(PIXELS, coding=b"chunked, identity"),
    "coding chunked, chunked": chunked(PIXELS, coding=b"chunked, chunked"),
    "chunk size xyz": chunked(end=b"xyz\r\n"),
    "chunk size 2^64": chunked(end=b"10000000000000000\r\nx"),
    "chunk without its CRLF": chunked(end=b"1\r\nxx0\r\n\r\n"),
    "space before the colon": post(b"X-A : b\r\n"),
    "header without a name": post(b": b\r\n"),
    "NUL in a header value": post(b"X-A: a\0b\r\n"),
    "bare CR in a header value": post(b"X-A: a\rb\r\n"),
    "two Host headers": post(host=b"Host: a\r\nHost: b\r\n"),
    "HTTP/0.9 request": b"GET /\r\n\r\n",
    "TLS ClientHello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n",
    "URL of 64 KiB": post(line=b"POST /" + b"a" * 65536 + b" HTTP/1.1"),
    "header of 1 MiB": post(b"X-A: %s\r\n" % (b"a" * (1 << 20))),
    "10,000 headers": post(b"".join(b"X-%d: a\r\n" % k for k in range(10_000))),
    "UTF-8 in the URL": post(line="POST /é HTTP/1.1".encode()),
}
"""Bytes that are not HTTP/1.1. HAProxy's parser rejects them with its own page, in HTML."""

ANSWERED = {
    **{
        f"Ray timeout {value!r}": post(b"X-Request-Timeout-Seconds: %s\r\n" % value)
        for value in (b"0", b"-1", b"nan", b"1e9", b"\xff")
    },
    **{
        f"request ID {value[:9]!r}": post(b"X-Request-ID: %s\r\n" % value)
        for value in (b"\xff", b"a" * 20_000, b"a b")
    },
    "offer of HTTP/2": post(b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    "offer of a WebSocket": post(
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    "Ray model ID": post(b"serve_multiplexed_model_id: ../x\r\n"),
    "Ray model ID not ASCII": post(b"serve_multiplexed_model_id: \xff\r\n"),
    "absolute URL": post(line=f"POST http://localhost{PATH} HTTP/1.1".encode()),
    "Expect: 100-continue": post(b"Expect: 100-continue\r\n"),
    "1,000 ranges": post(
        b"Range: bytes=%s\r\n" % b",".join(b"%d-%d" % (k, k) for k in range(1000))
    ),
    "body of two chunks": chunked(PIXELS[:5], PIXELS[5:]),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_hostile_request_gets_its_status(server: Server, case: str) -> None:
    request, status = REQUESTS[case]
    with httpx.Client(timeout=5) as client:
        reply = client.send(address_to(request, server.url("")))
        assert reply.status_code == status, reply.text
        assert reply.headers["content-type"] == "application/json"
        if status != 200:
            assert list(reply.json()) == ["error"]
            assert len(reply.content) < 1024
            assert reply.headers.get("allow") == ("POST" if status == 405 else None)
        assert client.get(server.url("/v2/health/live")).json() == {"live": True}


@pytest.mark.parametrize("case", REJECTED)
def test_an_unsupported_request_is_rejected_in_json(server: Server, case: str) -> None:
    data, statuses = REJECTED[case]
    reply, *others = send(server, data)
    assert reply.status in (statuses if isinstance(statuses, tuple) else (statuses,)), reply
    assert reply.headers["content-type"] == "application/json"
    assert list(json.loads(reply.body)) == ["error"]
    assert all(other.status >= 400 for other in others)
    assert is_live(server)


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_http_ends_the_connection(server: Server, case: str) -> None:
    (reply,) = send(server, MALFORMED[case] + GET)
    assert reply.status in (400, 422)
    assert is_live(server)


@pytest.mark.parametrize("case", ANSWERED)
def test_unusual_but_valid_requests_are_answered(server: Server, case: str) -> None:
    (reply,) = send(server, ANSWERED[case])
    assert reply.status == 200


def test_a_chunked_body_over_the_bound_is_rejected_before_its_end(server: Server) -> None:
    data = chunked(b"x" * (1 << 20), b"x" * (1 << 20), end=b"")
    (reply,) = send(server, data)
    assert reply.status == 413


def test_a_missing_body_times_out(server: Server) -> None:
    (reply,) = send(server, post(length=b"Content-Length: 1000\r\n"))
    assert reply.status == 408
    with connect(server) as client:
        client.sendall(post(length=b"Content-Length: 1000\r\n"))
    assert is_live(server)


def test_content_length_with_chunks_cannot_smuggle_a_request(server: Server) -> None:
    smuggled = chunked(PIXELS).replace(RAW, RAW + b"Content-Length: 4\r\n") + GET
    # RFC 9112, 6.3: the length is dropped, and the connection ends.
    assert [reply.status for reply in send(server, smuggled)] == [200]


def test_pipelined_requests_are_answered_until_a_malformed_one(server: Server) -> None:
    good, bad = post(), post(b"X-A : b\r\n")
    replies = send(server, good * 50 + bad + good * 49)
    assert [reply.status for reply in replies] == [200] * 50 + [400]


def listening(pid: str) -> list[tuple[str, int]]:
    """Return hosts (as Linux writes them, in hex) and ports on which a process listens."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    rows = [
        row.split()
        for name in ("tcp", "tcp6")
        for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    sockets = [
        row[1].split(":") for row in rows if f"socket:[{row[9]}]" in links and row[3] == "0A"
    ]
    return [(host, int(port, 16)) for host, port in sockets]


def test_haproxy_listens_on_loopback_only(server: Server) -> None:
    """Check the ports of requests, statistics and metrics, and the mode of the admin socket."""
    (ingress,) = (line.split() for line in server.command.running() if "haproxy -db" in line)
    assert [host for host, _ in listening(ingress[0])] == ["0100007F"] * 3
    admin = Path(ingress[ingress.index("-f") + 1]).with_name("a")
    assert stat.S_IMODE(admin.stat().st_mode) == 0o600


def test_public_ports_of_ray_require_its_token(server: Server) -> None:
    """Call each port of a replica that listens on all addresses, for Ray and for Ray Serve."""
    (replica,) = (line.split()[0] for line in server.command.running() if "ServeReplica" in line)
    codes = []
    for host, port in listening(replica):
        if host in ("00000000", "0" * 32):
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
                with pytest.raises(grpc.RpcError) as refused:
                    call(b"", timeout=5)
            codes.append(refused.value.code())
    # The port of Ray's core worker does not have this method.
    assert {code.name for code in codes} == {"UNAUTHENTICATED", "UNIMPLEMENTED"}


def test_every_reply_has_a_request_id(server: Server) -> None:
    (given,) = send(server, post(b"X-Request-ID: abc-1\r\n"))
    (generated,) = send(server, post(b"X-Request-ID: a b\r\n"))
    assert given.headers["x-request-id"] == "abc-1"
    assert len(generated.headers["x-request-id"]) == 36


def test_without_a_replica_the_ingress_answers_503_until_one_starts(server: Server) -> None:
    (replica,) = (line.split()[0] for line in server.command.running() if "ServeReplica" in line)
    os.kill(int(replica), signal.SIGKILL)
    # HAProxy closes the connection if its own to the killed replica breaks and there is no other.
    while not (replies := send(server, GET)):
        pass
    (refused,) = replies
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert list(json.loads(refused.body)) == ["error"]
    wait_for(lambda: send(server, GET)[0].status == 200)
