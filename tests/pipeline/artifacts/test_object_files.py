"""Object files: the requests that reading a file makes."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest

from pipeline.artifacts.storage import Storage

NUM_BYTES = 8 << 20


class Server(ThreadingHTTPServer):
    """A server with one file, of zeros."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fetched = list[int]()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(200, NUM_BYTES)

    def do_GET(self) -> None:
        start, end = map(int, re.findall(r"\d+", self.headers["Range"]))
        self.server.fetched.append(end + 1 - start)
        self._answer(206, end + 1 - start, f"bytes {start}-{end}/{NUM_BYTES}")
        self.wfile.write(bytes(end + 1 - start))

    def _answer(self, status: int, length: int, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def file(server: Server) -> Iterator[pa.NativeFile]:
    address = f"scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
    with Storage(f"s3://bucket/?{address}&anonymous=true").open("x") as file:
        yield file


def test_ranges_far_apart_are_fetched_alone(server: Server, file: pa.NativeFile) -> None:
    for start in range(0, NUM_BYTES, 1 << 20):
        file.seek(start)
        assert len(file.read(100_000)) == 100_000
    assert server.fetched == [100_000] * 8


@pytest.mark.parametrize("skipped", [0, 2000])
def test_a_file_that_is_read_in_order_takes_few_requests(
    server: Server, file: pa.NativeFile, skipped: int
) -> None:
    while file.read(500):
        file.seek(file.tell() + skipped)
    assert len(server.fetched) < 10
    assert sum(server.fetched) < 1.01 * NUM_BYTES
