"""An S3 server on loopback, and a way to it that fails, stalls and cuts connections."""

from __future__ import annotations

import re
import socket
import socketserver
import subprocess
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyarrow import fs

REPOSITORY = Path(__file__).parents[2]

FEW = 1500
"""Bytes that get through before a connection is cut or stalls."""

Fault = Literal["none", "fail", "cut request", "cut reply", "stall"]


@dataclass(frozen=True)
class S3:
    """A server with one bucket, at this port of this machine."""

    port: int

    @property
    def files(self) -> fs.S3FileSystem:
        address = {"scheme": "http", "endpoint_override": f"127.0.0.1:{self.port}"}
        keys = {"access_key": "a", "secret_key": "b", "region": "us-east-1"}
        return fs.S3FileSystem(**keys, **address, allow_bucket_creation=True)

    def uri(self, path: str = "") -> str:
        options = f"scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"
        return f"s3://a:b@bucket/{path}?{options}"

    def put(self, folder: Path, path: str) -> None:
        """Copies a folder into the bucket."""
        source = fs.LocalFileSystem()
        fs.copy_files(str(folder), f"bucket/{path}", source, self.files)

    def get(self, path: str, folder: Path) -> Path:
        """Copies what lies under a path of the bucket into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        fs.copy_files(f"bucket/{path}", str(folder), self.files, fs.LocalFileSystem())
        return folder


@contextmanager
def started() -> Iterator[S3]:
    """moto's server, of the venv that `make test` has made for it."""
    program = str(REPOSITORY / ".venv-others/moto/bin/moto_server")
    command = [program, "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            ready = next(line for line in process.stderr if "Running on http" in line)
            # Else it would wait for someone to read of each request.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            server = S3(int(re.findall(r":(\d+)", ready)[0]))
            server.files.create_dir("bucket")
            yield server
        finally:
            process.terminate()


@contextmanager
def disturbed(server: S3, faults: Sequence[Fault]) -> Iterator[tuple[S3, Counter[Fault]]]:
    """The same server, to which each connection has the next of these faults, over and over; and
    how often each took effect. One that took none, as the reply was short, comes again."""
    left, met = deque(faults), Counter[Fault]()

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            fault = left.popleft()
            took_effect = False
            with suppress(OSError), socket.create_connection(("127.0.0.1", server.port)) as there:
                took_effect = _suffer(fault, self.request, there)
            met[fault] += took_effect
            (left.append if took_effect or fault == "none" else left.appendleft)(fault)

    class Way(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Way(("127.0.0.1", 0), Connection) as way:
        threading.Thread(target=way.serve_forever, daemon=True).start()
        try:
            yield S3(way.server_address[1]), met
        finally:
            way.shutdown()


def _suffer(fault: Fault, client: socket.socket, server: socket.socket) -> bool:
    """Serves a connection with this fault; whether it took effect."""
    if fault == "fail":
        client.recv(1 << 16)
        client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
        return True
    effects = list[bool]()

    def carry(source: socket.socket, target: socket.socket, limit: int | None) -> None:
        effects.append(_carry(source, target, limit))
        if effects[-1] and fault == "stall":
            # Until the client has had enough.
            back.join()
        for end in (server, client):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    to = FEW if fault == "cut request" else None
    fro = FEW if fault in ("cut reply", "stall") else None
    back = threading.Thread(target=carry, args=(client, server, to))
    back.start()
    carry(server, client, fro)
    back.join()
    return any(effects)


def _carry(source: socket.socket, target: socket.socket, limit: int | None) -> bool:
    """Carries bytes until one end closes, or so many of them; whether those were all of them."""
    with suppress(OSError):
        while data := source.recv(1 << 16 if limit is None else limit):
            target.sendall(data)
            if limit is not None and not (limit := limit - len(data)):
                return True
    return False
