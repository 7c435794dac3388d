"""Nodes made of Linux namespaces: each has a network, processes, /tmp and /dev/shm of its own.

A process holds the namespaces of a node open. All of them are inside those of the switch, so when
its process ends, everything in them ends, even if this process is killed.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NETWORK = "10.77.0"

SWITCH = f"{NETWORK}.1"
"""The address of the switch, the way to everywhere else for the nodes."""

HARDWARE = "02:00:00:00:00"
"""The first five bytes of all hardware addresses. They stay when a node boots or a cable changes;
otherwise packets would be lost until others ask for the new address."""

DISK_BYTES = 1 << 30
"""The size of a node's own disk, /tmp, which is in memory."""

TOOLS = ("ip", "unshare", "nsenter", "setpriv", "taskset")

# SIGCHLD is ignored, so that the kernel clears processes whose parents have ended.
_HOLD = "echo ready; trap '' CHLD; exec sleep infinity"

_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--net")


def missing() -> str | None:
    """Return why this machine cannot make nodes, or None if it can."""
    for tool in TOOLS:
        if subprocess.run(["which", tool], capture_output=True).returncode:
            return f"the command {tool} is missing"
    probe = subprocess.run(
        [
            *_unshare(),
            "sh",
            "-c",
            "ip link add cable0 type veth peer name cable1 && mount -t tmpfs x /mnt",
        ],
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        return f"namespaces are not allowed: {probe.stderr.strip().splitlines()[-1]}"
    return None


def _unshare() -> list[str]:
    # Without root, a user namespace gives the rights to make the others.
    return [*_UNSHARE, *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]


@dataclass
class Namespaces:
    """The namespaces that a process holds: `pid` is its number outside."""

    holder: subprocess.Popen[str]
    pid: int

    @classmethod
    def hold(cls, prefix: Sequence[str], script: str) -> Namespaces:
        """Make namespaces by a command like `unshare`, and run a script in them first.

        Raise RuntimeError if the script fails.
        """
        # The holder ends with this process.
        command = ["setpriv", "--pdeathsig", "KILL", *prefix, "sh", "-ec", f"{script}\n{_HOLD}"]
        holder = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert holder.stdout
        assert holder.stderr
        if holder.stdout.readline() != "ready\n":
            raise RuntimeError(f"a node could not be made: {holder.stderr.read().strip()}")
        return cls(holder, _last_descendant(holder.pid))

    def command(self, *args: object, only_network: bool = False) -> list[str]:
        """Return a command that runs another one in these namespaces."""
        kinds = ["--net"] if only_network else ["--net", "--mount", "--pid", "--uts"]
        if os.geteuid():
            kinds += ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self.pid}", *kinds, "--", *map(str, args)]

    def popen(
        self,
        *args: object,
        cwd: Path = Path("/"),
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a command in these namespaces; the other options are those of Popen.

        The command is killed if the process returned ends, which waits for it outside of them.
        """
        python = str(Path(sys.executable).parent)
        path = {"PATH": f"{python}:{os.environ['PATH']}"}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        # Entering a mount namespace leaves the working directory.
        inside = ("setpriv", "--pdeathsig", "KILL", "env", f"--chdir={cwd}", *args)
        return subprocess.Popen(
            self.command(*inside), env={**inherited, **path, **(env or {})}, text=True, **options
        )

    def run_in_network(self, *args: object) -> None:
        """Run a command in the network alone. Raise RuntimeError if it fails."""
        done = subprocess.run(
            self.command(*args, only_network=True), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(map(str, args))}: {done.stderr.strip()}")

    def kill(self) -> None:
        """Kill every process in these namespaces at once."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        _end(self.holder)


class Switch:
    """The network that connects nodes. As a context manager, it ends with all of its nodes."""

    def __init__(self) -> None:
        script = f"""
            ip link set lo up
            ip link add bridge address {HARDWARE}:01 type bridge
            ip addr add {SWITCH}/24 dev bridge
            ip link set bridge up
        """
        self.address = SWITCH
        self.namespaces = Namespaces.hold([*_unshare(), "--uts"], script)
        self.nodes = list[Node]()

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
        self.namespaces.kill()

    def popen(self, *args: object, **options: Any) -> subprocess.Popen[str]:
        """Start a server that all nodes reach, and nothing else; `options` are those of Popen."""
        return self.namespaces.popen(*args, **options)

    def add_node(self, shared: Sequence[Path] = (), *, core: int | None = None) -> Node:
        """Make a node, of one core alone if it is given.

        `shared` are the folders that all nodes see, at their paths outside. They also see this
        Python, which may be in /tmp.
        """
        folders = {Path(sys.prefix), Path(sys.base_prefix), *shared}
        node = Node(self.namespaces, len(self.nodes), sorted(folders), core)
        self.nodes.append(node)
        node.boot()
        return node


class Node:
    """A machine of the testbed, on a cable to the switch."""

    def __init__(
        self, switch: Namespaces, number: int, shared: Sequence[Path], core: int | None
    ) -> None:
        self.name, self.address = f"node{number}", f"{NETWORK}.{number + 10}"
        self._hardware = f"{HARDWARE}:{number + 10:02x}"
        self._prefix = () if core is None else ("taskset", "--cpu-list", core)
        self._switch, self._cable, self._shared = switch, f"cable{number}", shared
        self._namespaces: Namespaces | None = None
        self._delay: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Make the node, or make it again after it was killed, with an empty disk."""
        inside = self._switch.command(*_UNSHARE, "--uts")
        self._namespaces = own = Namespaces.hold(inside, _node_script(self.name, self._shared))
        self._switch.run_in_network(
            *("ip", "link", "add", self._cable, "type", "veth"),
            *("peer", "name", "eth0", "address", self._hardware, "netns", own.pid),
        )
        self._switch.run_in_network("ip", "link", "set", self._cable, "master", "bridge", "up")
        for command in (
            "ip link set lo up",
            f"ip addr add {self.address}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {SWITCH}",
        ):
            own.run_in_network(*command.split())

    def popen(
        self, *args: object, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command on the node; `options` are those of Popen."""
        assert self._namespaces, f"{self.name} was killed"
        home = {"HOME": "/tmp/home"}
        return self._namespaces.popen(*self._prefix, *args, env={**home, **(env or {})}, **options)

    def run(
        self, *args: object, timeout_s: float = 300, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node and return it with its output; `options` are those of Popen."""
        pipe = subprocess.PIPE
        with self.popen(*args, stdout=pipe, stderr=pipe, **options) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def cut(self) -> None:
        """Pull the cable out: packets are lost, and connections are not told."""
        self._switch.run_in_network("ip", "link", "set", self._cable, "down")

    def restore(self) -> None:
        """Put the cable back, as fast as it was."""
        if self._delay:
            _end(self._delay)
            self._delay = None
            self._switch.run_in_network("ip", "link", "del", f"{self._cable}a")
        self._switch.run_in_network("ip", "link", "set", self._cable, "master", "bridge", "up")

    def slow(self, seconds: float) -> None:
        """Delay what the node sends and what it receives, each by so much."""
        self.restore()
        # Not by netem, which many kernels lack: packets pass a process instead of the cable.
        ends = f"{self._cable}a", f"{self._cable}b"
        add = ("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        self._switch.run_in_network(*add)
        self._switch.run_in_network("ip", "link", "set", self._cable, "nomaster")
        for link, master in ((ends[0], ["master", "bridge"]), (ends[1], [])):
            self._switch.run_in_network("ip", "link", "set", link, *master, "up")
        program = Path(__file__).with_name("delay.py")
        self._delay = subprocess.Popen(
            self._switch.command(
                *("setpriv", "--pdeathsig", "KILL"),
                *(sys.executable, program, ends[1], self._cable, seconds),
                only_network=True,
            ),
            stdout=subprocess.PIPE,
        )
        assert self._delay.stdout
        self._delay.stdout.readline()

    def kill(self) -> None:
        """Kill all processes of the node, as a power failure does; its network is gone too."""
        if not self._namespaces:
            return
        self.restore()
        self._namespaces.kill()
        self._namespaces = None
        # The kernel removes the link some time after the node.
        with suppress(RuntimeError):
            self._switch.run_in_network("ip", "link", "del", self._cable)


def _node_script(name: str, shared: Sequence[Path]) -> str:
    """Return what a node runs first: its host name, an empty /tmp and /dev/shm, shared folders."""
    lines = [
        f"hostname {name}",
        "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
        "mount -t tmpfs tmpfs /mnt",
        # As on Debian: the name of a host stands for an address of loopback.
        f"printf '127.0.0.1 localhost\\n127.0.1.1 {name}\\n' > /mnt/hosts",
        "mount --bind /mnt/hosts /etc/hosts",
        # No name server: a node cannot reach that of this machine, and would wait for it.
        "touch /mnt/resolv.conf",
        "[ ! -e /etc/resolv.conf ] || mount --bind /mnt/resolv.conf /etc/resolv.conf",
    ]
    folders = [shlex.quote(str(folder)) for folder in shared]
    for number, folder in enumerate(folders):
        lines.append(f"mkdir /mnt/{number}; mount --rbind {folder} /mnt/{number}")
    lines += [f"mount -t tmpfs -o mode=1777,size={DISK_BYTES} tmpfs /tmp", "mkdir /tmp/home"]
    for number, folder in enumerate(folders):
        lines.append(f"mkdir -p {folder}; mount --rbind /mnt/{number} {folder}")
    return "\n".join(lines)


def _end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    # Closes its pipes.
    process.communicate()


def _last_descendant(pid: int) -> int:
    """Return the process at the end of a chain of only children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return _last_descendant(int(children[0])) if children else pid
