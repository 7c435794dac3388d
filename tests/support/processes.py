"""Commands of the project as a user starts them, and what they leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MARK = "PIPELINE_TEST_MARK"

TIMEOUT_S = 240


class Command:
    """A process and all that it starts, which carry a mark in their environment."""

    def __init__(self, *args: object, env: Mapping[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.env = {**environment, MARK: self.mark, **(env or {})}
        self.args = [str(arg) for arg in args]

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.args, capture_output=True, text=True, env=self.env, timeout=TIMEOUT_S
        )

    @contextmanager
    def started(self, *, timeout_s: float = TIMEOUT_S) -> Iterator[subprocess.Popen[str]]:
        """The running process, whose stderr is shown by pytest; killed after that time."""
        pipe = subprocess.PIPE
        with subprocess.Popen(self.args, stdout=pipe, text=True, env=self.env) as process:
            watchdog = threading.Timer(timeout_s, process.kill)
            watchdog.start()
            try:
                yield process
            finally:
                watchdog.cancel()
                process.terminate()

    def left(self) -> list[str]:
        """Command lines of the marked processes that still run."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append(f"{folder.name} {command}")
            except (OSError, ValueError):
                continue
        return found


def pipeline(*args: object, **env: str) -> Command:
    return Command(sys.executable, "-m", "pipeline", *args, env=env)


def wait_for(condition: Callable[[], object], *, timeout_s: float = 60) -> None:
    """Returns when the condition holds; fails when it does not within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)
