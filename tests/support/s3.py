"""An S3 server, and a proxy in front of it that injects faults."""

from __future__ import annotations

import re
import socket
import socketserver
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyarrow import fs

from infra.testbed.namespaces import Switch

REPOSITORY = Path(__file__).parents[2]

PROGRAM = REPOSITORY / ".venv-others/moto/bin/moto_server"

CUT_BYTES = 1500
"""Bytes that pass before the proxy cuts or stalls a connection."""

Fault = Literal["none", "fail", "cut request", "cut reply", "stall"]


@dataclass(frozen=True)
class S3:
    """A server with one bucket."""

    port: int
    host: str = "127.0.0.1"

    @property
    def files(self) -> fs.S3FileSystem:
        address = {"scheme": "http", "endpoint_override": f"{self.host}:{self.port}"}
        keys = {"access_key": "a", "secret_key": "b", "region": "us-east-1"}
        return fs.S3FileSystem(**keys, **address, allow_bucket_creation=True)

    def uri(self, path: str = "") -> str:
        options = f"scheme=http&endpoint_override={self.host}:{self.port}&region=us-east-1"
        return f"s3://a:b@bucket/{path}?{options}"

    def put(self, folder: Path, path: str) -> None:
        """Copy a folder into the bucket."""
        source = fs.LocalFileSystem()
        fs.copy_files(str(folder), f"bucket/{path}", source, self.files)

    def get(self, path: str, folder: Path) -> Path:
        """Copy the files below a path of the bucket into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        fs.copy_files(f"bucket/{path}", str(folder), self.files, fs.LocalFileSystem())
        return folder


@contextmanager
def started() -> Iterator[S3]:
    """Start a server on loopback."""
    command = _command("127.0.0.1")
    with _serving(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as port:
        server = S3(port)
        server.files.create_dir("bucket")
        yield server


@contextmanager
def started_at(switch: Switch) -> Iterator[S3]:
    """Start a server that only the nodes of the switch reach."""
    command = _command(switch.address)
    with _serving(switch.popen(*command, stderr=subprocess.PIPE)) as port:
        server = S3(port, switch.address)
        code = f"from tests.support.s3 import S3; {server}.files.create_dir('bucket')"
        with switch.popen(sys.executable, "-c", code, cwd=REPOSITORY) as created:
            assert created.wait() == 0
        yield server


def _command(address: str) -> list[str]:
    """Return the command of moto's server, from the venv that `make test` creates for it."""
    return [str(PROGRAM), "-H", address, "-p", "0"]


@contextmanager
def _serving(process: subprocess.Popen[str]) -> Iterator[int]:
    """Yield the port of the server once it listens, and end it afterwards."""
    with process:
        try:
            assert process.stderr is not None
            ready = next(line for line in process.stderr if "Running on http" in line)
            # The server logs every request; unread, the pipe would fill and block it.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield int(re.findall(r":(\d+)", ready)[0])
        finally:
            process.terminate()


@contextmanager
def disturbed(server: S3, faults: Sequence[Fault]) -> Iterator[tuple[S3, Counter[Fault]]]:
    """Yield a proxy to the server, and the count of injected faults.

    Each connection gets the next of the faults, in a cycle. A fault that had no effect, because
    the transfer was too short, is repeated on the next connection.
    """
    remaining, injected = deque(faults), Counter[Fault]()

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            fault = remaining.popleft()
            took_effect = False
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", server.port)) as upstream,
            ):
                took_effect = _inject(fault, self.request, upstream)
            injected[fault] += took_effect
            if took_effect or fault == "none":
                remaining.append(fault)
            else:
                remaining.appendleft(fault)

    class Proxy(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Proxy(("127.0.0.1", 0), Connection) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield S3(proxy.server_address[1]), injected
        finally:
            proxy.shutdown()


def _inject(fault: Fault, client: socket.socket, server: socket.socket) -> bool:
    """Serve a connection with this fault; return whether it took effect."""
    if fault == "fail":
        client.recv(1 << 16)
        client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
        return True
    effects = list[bool]()

    def forward(source: socket.socket, target: socket.socket, limit: int | None) -> None:
        effects.append(_forward(source, target, limit))
        if effects[-1] and fault == "stall":
            # Stall until the client gives up and closes its side.
            upload.join()
        for end in (server, client):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    upload_limit = CUT_BYTES if fault == "cut request" else None
    download_limit = CUT_BYTES if fault in ("cut reply", "stall") else None
    upload = threading.Thread(target=forward, args=(client, server, upload_limit))
    upload.start()
    forward(server, client, download_limit)
    upload.join()
    return any(effects)


def _forward(source: socket.socket, target: socket.socket, limit: int | None) -> bool:
    """Forward up to `limit` bytes, until one end closes; return whether it was reached."""
    with suppress(OSError):
        while data := source.recv(1 << 16 if limit is None else limit):
            target.sendall(data)
            if limit is not None:
                limit -= len(data)
                if not limit:
                    return True
    return False
