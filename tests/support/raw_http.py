"""Replies of HTTP/1.1 read from a socket, for requests that no HTTP client can send."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """A complete HTTP reply; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def read_replies(client: socket.socket) -> list[Reply]:
    """Read replies until the server closes, or sends nothing for 0.3 s after one."""
    replies, buffer = list[Reply](), b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while data := client.recv(1 << 16):
            buffer += data
            while parsed := parse_reply(buffer):
                reply, buffer = parsed
                replies.append(reply)
                client.settimeout(0.3)
    return replies


def parse_reply(buffer: bytes) -> tuple[Reply, bytes] | None:
    """Return the first complete reply and the bytes after it; None if it is incomplete."""
    head, end, rest = buffer.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
    status = int(line.split()[1])
    if status == 100:
        return parse_reply(rest)
    length = int(headers.get("content-length", 0))
    if len(rest) < length:
        return None
    return Reply(status, headers, rest[:length]), rest[length:]
