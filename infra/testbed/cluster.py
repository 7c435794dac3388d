"""A cluster of Ray on the nodes of a testbed."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.testbed.namespaces import Node, Switch

REPOSITORY = Path(__file__).parents[2]

PORT = 6379

OBJECT_STORE_BYTES = 200 << 20


@dataclass
class Cluster:
    """Nodes that run Ray: the first is its head. All see `shared`, a folder."""

    switch: Switch
    shared: Path
    cpus: int
    """CPUs that Ray counts on each node that it starts on from now on."""
    programs: Path = Path(sys.executable).parent
    """The folder of the program `ray` that nodes run."""
    node_env: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment in which nodes start Ray."""
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def head(self) -> Node:
        return self.switch.nodes[0]

    @property
    def env(self) -> dict[str, str]:
        """The environment of a command that joins the cluster."""
        return {
            "RAY_ADDRESS": f"{self.head.address}:{PORT}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }

    def add_node(self, *, core: int | None = None) -> Node:
        """Make a node and start Ray on it, with one core alone if it is given."""
        node = self.switch.add_node([REPOSITORY, self.shared], core=core)
        self.start_ray(node)
        return node

    def start_ray(self, node: Node) -> None:
        """Start Ray on a node, for example after it was killed and booted again.

        Raise RuntimeError if Ray does not start.
        """
        if node is self.head:
            role = ["--head", f"--port={PORT}", "--dashboard-host=0.0.0.0"]
        else:
            role = [f"--address={self.head.address}:{PORT}"]
        command = (
            *(self.programs / "ray", "start", *role, f"--node-ip-address={node.address}"),
            *(f"--num-cpus={self.cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            "--disable-usage-stats",
        )
        env = {**self.env, **self.node_env}
        del env["RAY_ADDRESS"]
        started = node.run(*command, env=env)
        if started.returncode:
            raise RuntimeError(f"Ray did not start on {node.name}: {started.stderr[-2000:]}")

    def run(self, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the head, in the cluster, and return it with its output."""
        return self.head.run(*args, **self._joined(options))

    def popen(self, *args: object, **options: Any) -> subprocess.Popen[str]:
        """Start a command on the head, in the cluster; `options` are those of Popen."""
        return self.head.popen(*args, **self._joined(options))

    def _joined(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"cwd": REPOSITORY, **options, "env": {**self.env, **options.get("env", {})}}


@contextmanager
def started(nodes: int, *, cpus: int, shared: Path) -> Iterator[Cluster]:
    """Start a cluster of so many nodes, of so many CPUs each. Nothing is left of it afterwards."""
    with Switch() as switch:
        cluster = Cluster(switch, shared, cpus)
        for _ in range(nodes):
            cluster.add_node()
        yield cluster
