"""Commands of the project as a user starts them, and the processes that they leave behind."""

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
from typing import Any

MARK = "PIPELINE_TEST_MARK"

TIMEOUT_S = 240


class Command:
    """A command. Its process and all processes that it starts carry a mark in their environment."""

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
    def started(
        self, *, timeout_s: float = TIMEOUT_S, **options: Any
    ) -> Iterator[subprocess.Popen[str]]:
        """Start the process and yield it; kill it after `timeout_s`.

        Its stderr goes to pytest, unless the options of Popen say otherwise.
        """
        pipe = subprocess.PIPE
        with subprocess.Popen(
            self.args, stdout=pipe, text=True, env=self.env, **options
        ) as process:
            watchdog = threading.Timer(timeout_s, process.kill)
            watchdog.start()
            try:
                yield process
            finally:
                watchdog.cancel()
                process.terminate()

    def running(self) -> list[str]:
        """Return "PID COMMAND LINE" of each marked process that still runs."""
        lines = []
        for folder in Path("/proc").iterdir():
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    lines.append(f"{folder.name} {command}")
            except (OSError, ValueError):
                continue
        return lines


def pipeline(*args: object, **env: str) -> Command:
    return Command(sys.executable, "-m", "pipeline", *args, env=env)


def wait_for(condition: Callable[[], object], *, timeout_s: float = 60) -> None:
    """Wait until the condition holds; fail if it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition does not hold after {timeout_s} s"
        time.sleep(0.05)


def runs_without_error(code: str) -> bool:
    """Return whether the code runs without error in a fresh process."""
    return subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
