"""A server on loopback that speaks what obstore needs of Google Cloud Storage's XML API."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Stored(NamedTuple):
    """The content of an object, and the number of its generation, which a write changes."""

    content: bytes
    generation: int


class Server(ThreadingHTTPServer):
    """One bucket, in memory."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects = dict[str, Stored]()
        self.lock = threading.Lock()
        self.last_generation = 0


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = self.headers.get("x-goog-if-generation-match")
        with self.server.lock:
            stored = self.server.objects.get(self._key)
            if wanted not in (None, str(stored.generation if stored else 0)):
                self._answer(412)
                return
            self.server.last_generation += 1
            stored = Stored(content, self.server.last_generation)
            self.server.objects[self._key] = stored
        self._answer(200, headers=_headers(stored))

    def do_GET(self) -> None:
        if not self._key:
            self._list()
            return
        stored = self.server.objects.get(self._key)
        if stored is None:
            self._answer(404)
            return
        headers = _headers(stored)
        if self.headers.get("If-Match") not in (None, headers["ETag"]):
            self._answer(412)
            return
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not requested:
            self._answer(200, stored.content, headers)
            return
        part = stored.content[int(requested[1]) : int(requested[2]) + 1]
        end = int(requested[1]) + len(part) - 1
        headers["Content-Range"] = f"bytes {requested[1]}-{end}/{len(stored.content)}"
        self._answer(206, part, headers)

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        self._answer(204 if self.server.objects.pop(self._key, None) else 404)

    def _list(self) -> None:
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(stored.content)}</Size>"
            f"<LastModified>2026-01-01T00:00:00Z</LastModified><ETag>x</ETag></Contents>"
            for key, stored in sorted(self.server.objects.items())
            if key.startswith(prefix)
        )
        self._answer(200, f"<ListBucketResult>{contents}</ListBucketResult>".encode())

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket").lstrip("/")

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _headers(stored: Stored) -> dict[str, str]:
    generation = str(stored.generation)
    times = {"Last-Modified": formatdate(stored.generation, usegmt=True)}
    return {"ETag": f'"{generation}"', "x-goog-generation": generation} | times


@dataclass(frozen=True)
class GCS:
    """A server with one bucket, at this port of this machine."""

    port: int

    def uri(self, path: str = "") -> str:
        options = f"scheme=http&endpoint_override=127.0.0.1:{self.port}"
        return f"gs://anonymous@bucket/{path}?{options}"


@contextmanager
def started() -> Iterator[GCS]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield GCS(server.server_address[1])
        finally:
            server.shutdown()
