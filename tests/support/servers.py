"""Servers of the project as users start them, with a model whose answers follow by hand."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.storage import Storage
from serving.config import AppSettings
from serving.http.routes import build_routes
from serving.model.watcher import ModelWatcher
from tests.support.processes import TIMEOUT_S, Command
from tests.support.stripes_model import publish


@dataclass(frozen=True)
class Server:
    """A running server: its process, its ready line, and the model version that it serves."""

    command: Command
    process: subprocess.Popen[str]
    line: str
    storage: Storage
    model: ModelManifest

    def url(self, path: str) -> str:
        return self.line.split()[3] + path

    @property
    def grpc(self) -> str:
        """HOST:PORT of gRPC, if the server was started with it."""
        return self.line.split("grpc://")[1].strip()


def serving(*flags: object) -> Command:
    return Command(sys.executable, "-m", "serving", *flags)


@contextmanager
def started(
    root: str, *flags: object, timeout_s: float = TIMEOUT_S, **options: Any
) -> Iterator[Server]:
    """Publish the stripes model, start a server for it, and yield the server when it is ready."""
    storage = Storage(root)
    model = publish(storage)
    command = serving("--root", root, "--model", "stripes/production", "--port", "0", *flags)
    with command.started(timeout_s=timeout_s, **options) as process:
        assert process.stdout is not None
        yield Server(command, process, process.stdout.readline(), storage, model)


@contextmanager
def served_in_thread(root: Path, model: str) -> Iterator[int]:
    """Serve the model's routes in a thread, without Ray, and yield the port."""
    settings = AppSettings(root=str(root), model=model)
    app = build_routes(ModelWatcher(settings), settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
