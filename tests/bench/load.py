"""A load generator over kept connections, in its own process: run by tests.bench.serve.

    python -m tests.bench.load HOST PORT REQUEST_FILE ANSWER_FILE CONNECTIONS SECONDS RATE

REQUEST_FILE holds a whole request, with its headers. If RATE is 0, each connection sends the next
request when it has its answer. Otherwise RATE requests per second are scheduled, and latency counts
from the scheduled time. Every answer must be 200 with ANSWER_FILE's bytes in its body, or 503 with
Retry-After. Prints the answers per second, their latencies in ms at 50, 99 and 99.9 %, and the
number of requests that got 503.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import cast

import numpy as np
import uvloop


class Connection(asyncio.Protocol):
    """A connection with one request at a time; answers must have a Content-Length."""

    def __init__(self, expected: bytes) -> None:
        self._expected = expected
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> asyncio.Future[bool]:
        """Send a request; the result is True for 200 and False for 503."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        length = int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 :])
        del self._buffer[:]
        if b" 200 " in head[:13] and self._expected in body.replace(b": ", b":"):
            self._answer.set_result(True)
        elif b" 503 " in head[:13] and b"\r\nretry-after:" in head:
            self._answer.set_result(False)
        else:
            self._answer.set_exception(AssertionError((head + b"\n" + body)[:500]))

    def connection_lost(self, error: Exception | None) -> None:
        if hasattr(self, "_answer") and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("closed"))


async def run(
    host: str,
    port: int,
    request: bytes,
    expected: bytes,
    connections: int,
    seconds: float,
    rate: float,
) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(connections):
        _, connection = await loop.create_connection(lambda: Connection(expected), host, port)
        idle.put_nowait(connection)
    latencies, refused = list[float](), 0
    started = time.perf_counter()

    async def ask(due: float) -> None:
        nonlocal refused
        connection = await idle.get()
        if await connection.ask(request):
            latencies.append(time.perf_counter() - due)
        else:
            refused += 1
        idle.put_nowait(connection)

    async def run_connection() -> None:
        while time.perf_counter() < started + seconds:
            await ask(time.perf_counter())

    async def run_schedule() -> None:
        tasks = []
        for number in range(int(rate * seconds)):
            due = started + number / rate
            early_s = due - time.perf_counter()
            if early_s > 0:
                await asyncio.sleep(early_s)
            tasks.append(asyncio.create_task(ask(due)))
        await asyncio.gather(*tasks)

    if rate:
        await run_schedule()
    else:
        await asyncio.gather(*(run_connection() for _ in range(connections)))
    duration_s = time.perf_counter() - started
    p50, p99, p999 = np.quantile(latencies, [0.5, 0.99, 0.999]) * 1000
    rate = len(latencies) / duration_s
    return {"rate": rate, "p50": p50, "p99": p99, "p999": p999, "refused": refused}


if __name__ == "__main__":
    host, port, request, expected, connections, seconds, rate = sys.argv[1:]
    result = run(
        host,
        int(port),
        Path(request).read_bytes(),
        Path(expected).read_bytes(),
        int(connections),
        float(seconds),
        float(rate),
    )
    print(json.dumps(uvloop.run(result)))
