"""The testbed: nodes are machines of their own, which fail as machines do, and leave nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.testbed.namespaces import Node, Switch
from tests.support.processes import Command, wait_for

pytestmark = pytest.mark.cluster

PORT = 7000

CONNECT = f"""
import socket, sys, time
started = time.monotonic()
socket.create_connection((sys.argv[1], {PORT}), 3).close()
print(time.monotonic() - started)
"""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    with Switch() as switch:
        yield switch.add_node([tmp_path]), switch.add_node([tmp_path])


@contextmanager
def serving(node: Node | Switch) -> Iterator[subprocess.Popen[str]]:
    """Start a server on a node or at the switch, and yield it when it listens."""
    command = (sys.executable, "-u", "-m", "http.server", PORT)
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with node.popen(*command, stdout=pipe, stderr=nowhere) as server:
        try:
            assert server.stdout
            assert "Serving" in server.stdout.readline()
            yield server
        finally:
            server.kill()


def seconds_to_connect(node: Node, other: Node | Switch) -> float | None:
    """Return how long a connection takes, None if there is none."""
    done = node.run(sys.executable, "-c", CONNECT, other.address)
    return None if done.returncode else float(done.stdout)


def test_a_node_has_its_own_name_disk_and_processes(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    (tmp_path / "seen").write_text("by all")
    for node in nodes:
        node.run("sh", "-c", f"echo {node.name} > /tmp/own; echo {node.name} > /dev/shm/own")
    for node in nodes:
        shown = node.run("sh", "-c", f"hostname; cat /tmp/own /dev/shm/own {tmp_path}/seen")
        assert shown.stdout == f"{node.name}\n{node.name}\n{node.name}\nby all"
        # `ps`, the first process of the node, and the header.
        assert len(node.run("ps", "ax").stdout.splitlines()) == 3


def test_the_name_of_a_node_is_an_address_of_loopback(nodes: tuple[Node, Node]) -> None:
    """As on Debian: what listens on the address of its own name is not reached from elsewhere."""
    code = "import socket; print(socket.gethostbyname(socket.gethostname()))"
    assert nodes[0].run(sys.executable, "-c", code).stdout.startswith("127.")


def test_a_cable_is_slowed_cut_and_restored(nodes: tuple[Node, Node]) -> None:
    with serving(nodes[1]):
        assert (seconds_to_connect(*nodes) or 9) < 0.2
        nodes[1].slow(0.2)
        assert (seconds_to_connect(*nodes) or 0) > 0.4
        nodes[1].restore()
        assert (seconds_to_connect(*nodes) or 9) < 0.2
        nodes[1].cut()
        assert seconds_to_connect(*nodes) is None
        nodes[1].restore()
        assert seconds_to_connect(*nodes) is not None


def test_others_find_a_node_and_the_switch_at_once_after_a_fault(tmp_path: Path) -> None:
    """Hardware addresses stay, as those of machines do: else packets would be lost for a minute."""
    with Switch() as switch:
        node, other = switch.add_node([tmp_path]), switch.add_node([tmp_path])
        with serving(switch), serving(other):
            assert seconds_to_connect(node, switch) is not None
            assert seconds_to_connect(node, other) is not None
            node.slow(0.1)
            node.restore()
            assert seconds_to_connect(node, switch) is not None
        other.kill()
        other.boot()
        with serving(other):
            assert seconds_to_connect(node, other) is not None


def test_a_killed_node_ends_with_its_processes_and_boots_again(nodes: tuple[Node, Node]) -> None:
    nodes[1].run("touch", "/tmp/own")
    with serving(nodes[1]) as server:
        nodes[1].kill()
        assert server.wait(10) != 0
    assert seconds_to_connect(*nodes) is None
    nodes[1].boot()
    assert nodes[1].run("test", "-e", "/tmp/own").returncode == 1
    with serving(nodes[1]):
        assert seconds_to_connect(*nodes) is not None


def test_a_command_has_its_folder_and_ends_with_the_process_that_waits_for_it(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    assert nodes[0].run("pwd", cwd=tmp_path).stdout == f"{tmp_path}\n"
    with nodes[0].popen("sleep", 1000) as process:
        wait_for(lambda: "sleep 1000" in nodes[0].run("ps", "ax").stdout)
        process.terminate()
    wait_for(lambda: "sleep 1000" not in nodes[0].run("ps", "ax").stdout)


def test_nodes_reach_a_server_at_the_switch_and_nothing_outside() -> None:
    with Switch() as switch, serving(switch):
        assert seconds_to_connect(switch.add_node(), switch) is not None
        with switch.popen("ip", "route", "get", "192.0.2.1", stderr=subprocess.PIPE) as outside:
            assert "unreachable" in outside.communicate()[1]


def test_nothing_is_left_of_a_testbed_whose_owner_is_killed() -> None:
    code = """
import time
from infra.testbed.namespaces import Switch
switch = Switch()
nodes = [switch.add_node() for _ in range(2)]
nodes[1].slow(0.1)
process = nodes[0].popen("sleep", "1000")
print("ready", flush=True)
time.sleep(1000)
"""
    command = Command(sys.executable, "-c", code)
    links = Path("/sys/class/net")
    before = {link.name for link in links.iterdir()}
    with command.started() as owner:
        assert owner.stdout
        assert owner.stdout.readline() == "ready\n"
        assert len(command.running()) > 4
        owner.send_signal(signal.SIGKILL)
    wait_for(lambda: not command.running())
    assert {link.name for link in links.iterdir()} == before
