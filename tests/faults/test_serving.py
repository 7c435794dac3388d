"""Kill processes of a server with two replicas under load: no client may notice."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.processes import wait_for
from tests.support.servers import Server, started
from tests.support.stripes_model import STRIPES

pytestmark = pytest.mark.slow

CONNECTIONS = 16
RECOVERY_S = 20
PIXELS = np.zeros((64, STRIPES.num_pixels), np.uint8).tobytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = str(tmp_path_factory.mktemp("root"))
    with started(root, "--num-replicas", "2") as server:
        yield server


def processes(server: Server, name: str) -> list[int]:
    """Return the IDs of the server's processes with this name in their command line."""
    lines = (line.split(" ", 1) for line in server.command.running())
    return [int(pid) for pid, command in lines if name in command]


def is_healthy(server: Server) -> bool:
    """Return whether exactly one HAProxy runs and sends requests to two replicas."""
    ingress = [line for line in server.command.running() if "haproxy -db" in line]
    if len(processes(server, "ServeReplica")) != 2 or len(ingress) != 1:
        return False
    folder = Path(ingress[0].split(" -f ")[1].split()[0]).parent
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "a"))
        client.sendall(b"show servers state\n")
        state = client.makefile().read().splitlines()
    return sum(line.split()[5] == "2" for line in state if "SERVE_REPLICA" in line) == 2


@asynccontextmanager
async def load(server: Server) -> AsyncIterator[list[int]]:
    """Run clients that send all the time; yield the statuses of the answers, 0 for no answer."""

    async def ask(http: httpx.AsyncClient) -> None:
        while not stopped.is_set():
            try:
                reply = await http.post("/v2/models/stripes/infer", content=PIXELS, headers=RAW)
                statuses.append(reply.status_code)
            except httpx.HTTPError:
                statuses.append(0)

    statuses, stopped = list[int](), asyncio.Event()
    async with httpx.AsyncClient(base_url=server.url(""), timeout=60) as http:
        tasks = [asyncio.create_task(ask(http)) for _ in range(CONNECTIONS)]
        yield statuses
        stopped.set()
        await asyncio.gather(*tasks)


RAW = {"inference-header-content-length": "0"}


async def wait_for_answers(statuses: list[int], count: int = 200) -> None:
    """Wait until so many more answers have arrived."""
    until = len(statuses) + count
    async with asyncio.timeout(60):
        while len(statuses) < until:
            await asyncio.sleep(0.01)


async def wait_until_healthy(server: Server, *, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not is_healthy(server):
            await asyncio.sleep(0.2)


def test_clients_do_not_notice_a_killed_replica(server: Server) -> None:
    async def scenario() -> None:
        await wait_until_healthy(server, within_s=60)
        async with load(server) as statuses:
            for _ in range(2):
                await wait_for_answers(statuses)
                os.kill(min(processes(server, "ServeReplica")), signal.SIGKILL)
                await wait_until_healthy(server, within_s=RECOVERY_S)
            await wait_for_answers(statuses)
        assert set(statuses) == {200}

    asyncio.run(scenario())


def test_clients_do_not_notice_a_killed_controller(server: Server) -> None:
    async def scenario() -> None:
        await wait_until_healthy(server, within_s=60)
        async with load(server) as statuses:
            await wait_for_answers(statuses)
            (controller,) = processes(server, "ServeController")
            os.kill(controller, signal.SIGKILL)
            async with asyncio.timeout(60):
                while processes(server, "ServeController") in ([], [controller]):
                    await asyncio.sleep(0.1)
            await wait_for_answers(statuses)
        assert set(statuses) == {200}

    asyncio.run(scenario())


def test_a_killed_haproxy_is_restarted(server: Server) -> None:
    asyncio.run(wait_until_healthy(server, within_s=60))
    (ingress,) = processes(server, "haproxy -db")
    os.kill(ingress, signal.SIGKILL)

    def answers() -> bool:
        try:
            return httpx.get(server.url("/v2/health/live"), timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    wait_for(answers, timeout_s=RECOVERY_S)


def test_an_overloaded_server_rejects_requests_and_recovers(tmp_path: Path) -> None:
    """Send more at once than the queue holds: some get 503, and every request is answered."""
    rows = 1024
    body = np.zeros((rows, STRIPES.num_pixels), np.uint8).tobytes()
    path = "/v2/models/stripes/infer"

    async def scenario(server: Server) -> None:
        async def ask() -> None:
            for _ in range(10):
                reply = await http.post(path, content=body, headers=RAW)
                statuses.append(reply.status_code)
                if reply.status_code == 503:
                    assert reply.headers["retry-after"] == "1"
                    assert list(reply.json()) == ["error"]

        limits = httpx.Limits(max_connections=4 * CONNECTIONS)
        async with httpx.AsyncClient(base_url=server.url(""), timeout=60, limits=limits) as http:
            await asyncio.gather(*(ask() for _ in range(4 * CONNECTIONS)))
            assert set(statuses) == {200, 503}
            async with asyncio.timeout(10):
                reply = await http.post(path, content=body, headers=RAW)
            assert reply.status_code == 200

    statuses = list[int]()
    flags = ("--max-request-rows", rows, "--max-queue-rows", rows)
    with started(str(tmp_path), *flags) as server:
        asyncio.run(scenario(server))
