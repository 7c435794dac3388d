"""Servers of the project as users start them, with a model whose answers follow by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.storage import Storage
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
def started(root: str, *flags: object, timeout_s: float = TIMEOUT_S) -> Iterator[Server]:
    """Publish the stripes model, start a server for it, and yield the server when it is ready."""
    storage = Storage(root)
    model = publish(storage)
    command = serving("--root", root, "--model", "stripes/production", "--port", "0", *flags)
    with command.started(timeout_s=timeout_s) as process:
        assert process.stdout is not None
        yield Server(command, process, process.stdout.readline(), storage, model)
