"""What happens to servers, under load: no client of a server with two replicas sees any of it."""

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
HEALED_S = 20
PIXELS = np.zeros((64, STRIPES.num_pixels), np.uint8).tobytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = str(tmp_path_factory.mktemp("root"))
    with started(root, "--num-replicas", "2") as server:
        yield server


def processes(server: Server, name: str) -> list[int]:
    """Ids of what a server started under a name."""
    lines = (line.split(" ", 1) for line in server.command.left())
    return [int(pid) for pid, command in lines if name in command]


def is_whole(server: Server) -> bool:
    """Whether HAProxy, and one of it, sends requests to two replicas."""
    ingress = [line for line in server.command.left() if "haproxy -db" in line]
    if len(processes(server, "ServeReplica")) != 2 or len(ingress) != 1:
        return False
    folder = Path(ingress[0].split(" -f ")[1].split()[0]).parent
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "admin.sock"))
        client.sendall(b"show servers state\n")
        state = client.makefile().read().splitlines()
    return sum(line.split()[5] == "2" for line in state if "SERVE_REPLICA" in line) == 2


@asynccontextmanager
async def load(server: Server) -> AsyncIterator[list[int]]:
    """Many clients that never stop asking; the statuses of what they got, 0 for no answer."""

    async def ask(http: httpx.AsyncClient) -> None:
        while not done.is_set():
            try:
                reply = await http.post("/v2/models/stripes/infer", content=PIXELS, headers=RAW)
                statuses.append(reply.status_code)
            except httpx.HTTPError:
                statuses.append(0)

    statuses, done = list[int](), asyncio.Event()
    async with httpx.AsyncClient(base_url=server.url(""), timeout=60) as http:
        tasks = [asyncio.create_task(ask(http)) for _ in range(CONNECTIONS)]
        yield statuses
        done.set()
        await asyncio.gather(*tasks)


RAW = {"inference-header-content-length": "0"}


async def more(statuses: list[int], count: int = 200) -> None:
    """Until so many more answers have come."""
    until = len(statuses) + count
    async with asyncio.timeout(60):
        while len(statuses) < until:
            await asyncio.sleep(0.01)


async def whole(server: Server, *, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not is_whole(server):
            await asyncio.sleep(0.2)


def test_a_killed_replica_is_not_noticed_and_replaced(server: Server) -> None:
    async def scenario() -> None:
        await whole(server, within_s=60)
        async with load(server) as statuses:
            for _ in range(2):
                await more(statuses)
                os.kill(min(processes(server, "ServeReplica")), signal.SIGKILL)
                await whole(server, within_s=HEALED_S)
            await more(statuses)
        assert set(statuses) == {200}

    asyncio.run(scenario())


def test_a_killed_controller_is_not_noticed(server: Server) -> None:
    async def scenario() -> None:
        await whole(server, within_s=60)
        async with load(server) as statuses:
            await more(statuses)
            (controller,) = processes(server, "ServeController")
            os.kill(controller, signal.SIGKILL)
            async with asyncio.timeout(60):
                while processes(server, "ServeController") in ([], [controller]):
                    await asyncio.sleep(0.1)
            await more(statuses)
        assert set(statuses) == {200}

    asyncio.run(scenario())


def test_a_killed_ingress_comes_back(server: Server) -> None:
    asyncio.run(whole(server, within_s=60))
    (ingress,) = processes(server, "haproxy -db")
    os.kill(ingress, signal.SIGKILL)

    def answers() -> bool:
        try:
            return httpx.get(server.url("/v2/health/live"), timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    wait_for(answers, timeout_s=HEALED_S)


def test_an_overloaded_server_refuses_and_is_well_again(tmp_path: Path) -> None:
    """Far more at once than its queue may hold: some are told to come again, none is lost."""
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
