"""What HTTP itself can be made to carry, byte by byte, against the server as users start it.

The rows are those of a catalogue of hostile requests; each has its exact status, and the server
answers after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import pytest

from tests.support.hostile_requests import REQUESTS, addressed
from tests.support.processes import wait_for
from tests.support.servers import Server, started
from tests.support.stripes_model import STRIPES

PATIENCE_S = 20
PIXELS = np.zeros(STRIPES.num_pixels, np.uint8).tobytes()
PATH = "/v2/models/stripes/infer"
RAW = b"Inference-Header-Content-Length: 0\r\n"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


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
    """The replies to these bytes, until the server closes, or has no more for a while."""
    with connect(server) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
        return read(client)


def read(client: socket.socket) -> list[Reply]:
    replies, buffer = list[Reply](), b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while data := client.recv(1 << 16):
            buffer += data
            while reply := take(buffer):
                replies.append(reply[0])
                buffer = reply[1]
                client.settimeout(0.3)
    return replies


def take(buffer: bytes) -> tuple[Reply, bytes] | None:
    """The first whole reply, and what follows it."""
    head, end, rest = buffer.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
    if (status := int(line.split()[1])) == 100:
        return take(rest)
    length = int(headers.get("content-length", 0))
    if len(rest) < length:
        return None
    return Reply(status, headers, rest[:length]), rest[length:]


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

REFUSED: dict[str, tuple[bytes, int | tuple[int, ...]]] = {
    "24 a length over the bound": (post(body=b"", length=b"Content-Length: 10737418240\r\n"), 413),
    "26 many chunks": (chunked(*[b"x"] * 50_000), 400),
    "66 no Host": (post(host=b""), 400),
    "68 HTTP/2.0": (post(line=f"POST {PATH} HTTP/2.0".encode()), (400, 505)),
    "69 HTTP/1.9": (post(line=f"POST {PATH} HTTP/1.9".encode()), (400, 505)),
    "69 preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9, (400, 405, 505)),
    "69 unknown method": (post(line=f"BREW {PATH} HTTP/1.1".encode()), 405),
    "70 CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405),
    "70 TRACE": (post(line=f"TRACE {PATH} HTTP/1.1".encode()), 405),
    "70 OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", (404, 405)),
    "75 a length over the bound, expecting": (
        post(b"Expect: 100-continue\r\n", b"", length=b"Content-Length: 10737418240\r\n"),
        413,
    ),
    "71 an address of 10 KB": (post(line=b"POST /" + b"a" * 10_000 + b" HTTP/1.1"), 414),
    "72 headers of 40 KB": (post(b"X-A: %s\r\n" % (b"a" * 40_000)), 431),
    "75 another expectation": (post(b"Expect: x\r\n"), 417),
    "76 a WebSocket": (
        f"GET {PATH} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode(),
        (400, 403, 404, 405, 426),
    ),
}

MALFORMED: dict[str, bytes] = {
    "55 a key of 1 MiB": post(b"Authorization: Bearer %s\r\n" % (b"k" * (1 << 20))),
    "60 two lengths": post(b"Content-Length: 7\r\n"),
    "61 length -1": post(length=b"Content-Length: -1\r\n"),
    "61 length +3": post(length=b"Content-Length: +3\r\n"),
    "61 length 0x3": post(length=b"Content-Length: 0x3\r\n"),
    "61 length of 20 digits": post(length=b"Content-Length: 99999999999999999999\r\n"),
    "63 gzip, chunked": chunked(PIXELS, coding=b"gzip, chunked"),
    "62 xchunked": chunked(PIXELS, coding=b"xchunked"),
    "62 identity": chunked(PIXELS, coding=b"identity"),
    "62 chunked, identity": chunked(PIXELS, coding=b"chunked, identity"),
    "62 chunked twice": chunked(PIXELS, coding=b"chunked, chunked"),
    "64 a chunk size that is none": chunked(end=b"xyz\r\n"),
    "64 a chunk of 2^64": chunked(end=b"10000000000000000\r\nx"),
    "64 a chunk without its end": chunked(end=b"1\r\nxx0\r\n\r\n"),
    "65 space before the colon": post(b"X-A : b\r\n"),
    "65 no name": post(b": b\r\n"),
    "65 NUL in a value": post(b"X-A: a\0b\r\n"),
    "65 bare CR": post(b"X-A: a\rb\r\n"),
    "67 two Hosts": post(host=b"Host: a\r\nHost: b\r\n"),
    "68 HTTP/0.9": b"GET /\r\n\r\n",
    "69 TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n",
    "71 an address of 64 KiB": post(line=b"POST /" + b"a" * 65536 + b" HTTP/1.1"),
    "72 a header of 1 MiB": post(b"X-A: %s\r\n" % (b"a" * (1 << 20))),
    "72 10,000 headers": post(b"".join(b"X-%d: a\r\n" % k for k in range(10_000))),
    "73 UTF-8 in the address": post(line="POST /é HTTP/1.1".encode()),
}
"""What is no HTTP/1.1. HAProxy, which finds it so, has no words but its own for that, in HTML."""

ANSWERED = {
    **{
        f"56 timeout {value!r}": post(b"X-Request-Timeout-Seconds: %s\r\n" % value)
        for value in (b"0", b"-1", b"nan", b"1e9", b"\xff")
    },
    **{
        f"57 id {value[:9]!r}": post(b"X-Request-ID: %s\r\n" % value)
        for value in (b"\xff", b"a" * 20_000, b"a b")
    },
    "58 a model id": post(b"serve_multiplexed_model_id: ../x\r\n"),
    "58 a model id of no text": post(b"serve_multiplexed_model_id: \xff\r\n"),
    "70 an absolute address": post(line=f"POST http://localhost{PATH} HTTP/1.1".encode()),
    "75 100-continue": post(b"Expect: 100-continue\r\n"),
    "77 ranges": post(b"Range: bytes=%s\r\n" % b",".join(b"%d-%d" % (k, k) for k in range(1000))),
    "chunks": chunked(PIXELS[:5], PIXELS[5:]),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_what_no_client_should_send_has_its_status(server: Server, case: str) -> None:
    request, status = REQUESTS[case]
    with httpx.Client(timeout=5) as client:
        reply = client.send(addressed(request, server.url("")))
        assert reply.status_code == status, reply.text
        assert reply.headers["content-type"] == "application/json"
        if status != 200:
            assert list(reply.json()) == ["error"]
            assert len(reply.content) < 1024
            assert reply.headers.get("allow") == ("POST" if status == 405 else None)
        assert client.get(server.url("/v2/health/live")).json() == {"live": True}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_http_as_it_should_be_is_refused(server: Server, case: str) -> None:
    data, statuses = REFUSED[case]
    reply, *others = send(server, data)
    assert reply.status in (statuses if isinstance(statuses, tuple) else (statuses,)), reply
    assert reply.headers["content-type"] == "application/json"
    assert list(json.loads(reply.body)) == ["error"]
    assert all(other.status >= 400 for other in others)
    (health,) = send(server, GET)
    assert health.status == 200


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_http_ends_the_connection(server: Server, case: str) -> None:
    (reply,) = send(server, MALFORMED[case] + GET)
    assert reply.status in (400, 422)
    assert send(server, GET)[0].status == 200


@pytest.mark.parametrize("case", ANSWERED)
def test_what_a_header_asks_of_ray_is_ignored(server: Server, case: str) -> None:
    (reply,) = send(server, ANSWERED[case])
    assert reply.status == 200


def test_a_stream_over_the_bound_is_refused_before_its_end(server: Server) -> None:
    data = chunked(b"x" * (1 << 20), b"x" * (1 << 20), end=b"")
    (reply,) = send(server, data)
    assert reply.status == 413


def test_a_body_that_does_not_come_is_not_waited_for(server: Server) -> None:
    (reply,) = send(server, post(length=b"Content-Length: 1000\r\n"))
    assert reply.status == 408
    with connect(server) as client:
        client.sendall(post(length=b"Content-Length: 1000\r\n"))
    assert send(server, GET)[0].status == 200


def test_a_length_beside_chunks_smuggles_nothing(server: Server) -> None:
    smuggled = chunked(PIXELS).replace(RAW, RAW + b"Content-Length: 4\r\n") + GET
    # RFC 9112, 6.3: the length is dropped, and the connection ends.
    assert [reply.status for reply in send(server, smuggled)] == [200]


def test_pipelined_requests_are_answered_in_order_until_one_is_bad(server: Server) -> None:
    good, bad = post(), post(b"X-A : b\r\n")
    replies = send(server, good * 50 + bad + good * 49)
    assert [reply.status for reply in replies] == [200] * 50 + [400]


def listening(pid: str) -> list[tuple[str, int]]:
    """Hosts, as Linux writes them, and ports on which a process listens."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    rows = [
        row.split()
        for name in ("tcp", "tcp6")
        for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    found = [row[1].split(":") for row in rows if f"socket:[{row[9]}]" in links and row[3] == "0A"]
    return [(host, int(port, 16)) for host, port in found]


def test_only_this_machine_can_reach_it(server: Server) -> None:
    """Its ports, those of its statistics and metrics among them, and its admin socket."""
    (ingress,) = (line.split() for line in server.command.left() if "haproxy -db" in line)
    assert [host for host, _ in listening(ingress[0])] == ["0100007F"] * 3
    admin = Path(ingress[ingress.index("-f") + 1]).with_name("admin.sock")
    assert stat.S_IMODE(admin.stat().st_mode) == 0o600


def test_what_ray_opens_to_others_wants_its_token(server: Server) -> None:
    """A replica listens on all addresses for Ray, and for other deployments of Ray Serve."""
    (replica,) = (line.split()[0] for line in server.command.left() if "ServeReplica" in line)
    codes = []
    for host, port in listening(replica):
        if host in ("00000000", "0" * 32):
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
                with pytest.raises(grpc.RpcError) as refused:
                    call(b"", timeout=5)
            codes.append(refused.value.code())
    # The port of Ray's core knows no such method.
    assert {code.name for code in codes} == {"UNAUTHENTICATED", "UNIMPLEMENTED"}


def test_a_request_has_an_id(server: Server) -> None:
    (given,) = send(server, post(b"X-Request-ID: abc-1\r\n"))
    (made,) = send(server, post(b"X-Request-ID: a b\r\n"))
    assert given.headers["x-request-id"] == "abc-1"
    assert len(made.headers["x-request-id"]) == 36


def test_without_a_replica_it_asks_to_come_again_until_there_is_one(server: Server) -> None:
    (replica,) = (line.split()[0] for line in server.command.left() if "ServeReplica" in line)
    os.kill(int(replica), signal.SIGKILL)
    # HAProxy closes without a word where its kept connection broke and there is no other replica.
    while not (replies := send(server, GET)):
        pass
    (refused,) = replies
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert list(json.loads(refused.body)) == ["error"]
    wait_for(lambda: send(server, GET)[0].status == 200)
