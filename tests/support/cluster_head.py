"""A cluster of one node that requires a token, as an operator starts it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import requests

from tests.support.processes import Command, wait_for

TOKEN = "a-token-of-this-test-and-of-nothing-else"
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A running cluster of one node: the addresses of its job server and GCS, and its storage."""

    address: str
    gcs: str
    serve_port: int
    root: Path
    env: dict[str, str]

    def command(self, *args: object, **env: str) -> Command:
        return Command(*args, env={**self.env, **env})

    def submit(self, *args: object, **env: str) -> Command:
        return self.command(sys.executable, "-m", "infra.jobs.submit", *args, **env)

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs, the newest last."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        jobs = requests.get(f"{self.address}/api/jobs/", headers=headers, timeout=30).json()
        return sorted(jobs, key=lambda job: job["start_time"])


@contextmanager
def started(root: Path) -> Iterator[Head]:
    """Start the cluster; its jobs and servers have this storage root."""
    gcs, dashboard, agent, serve_port = _free_ports(4)
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PIPELINE_ROOT": str(root),
        "PIPELINE_MODEL": "bars/production",
    }
    values = {
        "port": gcs,
        "dashboard-port": dashboard,
        # The Ray of the test session uses the default port.
        "dashboard-agent-listen-port": agent,
        "num-cpus": 2,
        # It holds sockets, whose paths must be short (107 bytes).
        "temp-dir": mkdtemp(),
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    node = Command(BIN / "ray", "start", "--head", "--block", *flags, env=env)
    address = f"http://127.0.0.1:{dashboard}"
    with node.started() as process:
        try:
            wait_for(lambda: _accepts_jobs(address))
            env["RAY_ADDRESS"] = address
            yield Head(address, f"127.0.0.1:{gcs}", serve_port, root, env)
        finally:
            process.kill()
            for line in node.running():
                os.kill(int(line.split()[0]), signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _accepts_jobs(address: str) -> bool:
    """Return whether the cluster runs jobs. Its job server answers before a node can run one."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        job = {"entrypoint": "true"}
        return requests.post(f"{address}/api/jobs/", json=job, headers=headers, timeout=30).ok
    except requests.ConnectionError:
        return False
