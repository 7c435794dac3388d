"""Twenty minutes of load that never stops, as `make soak`: is memory flat?

    make soak            # MINUTES=20

One image as JSON over 16 connections as fast as they go, 1,024 images, pictures, the hostile
requests of the tests in turn, and every half minute another version promoted. Prints every minute
the memory of each process that stays, and one line of JSON last: growth in MiB from the minute
after the first fifth to the last minute, and the replica's files and threads. Exits 1 where the
replica grew by more than BOUND_MIB.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np

from pipeline.artifacts.registry import promote
from tests.e2e.test_edge import ANSWERED, MALFORMED, REFUSED, post
from tests.support.hostile_requests import PNG, REQUESTS, addressed
from tests.support.servers import Server, started
from tests.support.stripes_model import STRIPES, publish

BOUND_MIB = 16
SWAP_S = 30
INFER = "/v2/models/stripes/infer"
RAW = {"inference-header-content-length": "0"}


def processes(server: Server) -> dict[str, int]:
    """Ids of what the server started, by name; Ray numbers none of these."""
    found = {}
    for line in server.command.left():
        pid, command = line.split(" ", 1)
        if name := re.search(
            r"ServeReplica|ServeController|haproxy -db|raylet|gcs_server", command
        ):
            found[name[0]] = int(pid)
    return found


def memory_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"Pss: +(\d+)", text)[0]) / 1024


async def fast(server: Server, scratch: Path, seconds: float) -> None:
    """One image in JSON, by the load generator of the benchmark."""
    tensor = {"name": "image", "shape": [1, *STRIPES.shape], "datatype": "UINT8"}
    body = json.dumps({"inputs": [tensor | {"data": [0] * STRIPES.num_pixels}]}).encode()
    (scratch / "request").write_bytes(post(body=body).replace(b"Inference-Header", b"X-Other"))
    (scratch / "answer").write_bytes(b'"probabilities"')
    host, port = server.url("").removeprefix("http://").split(":")
    files = scratch / "request", scratch / "answer"
    command = ["-m", "tests.bench.load", host, port, *files, 16, seconds, 0]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *map(str, command), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    print(f"one image as JSON: {out.decode().strip()}")


async def others(server: Server, statuses: Counter[int], until: float) -> None:
    """Large requests, pictures, and all that is hostile, over connections new and kept."""
    many = np.zeros((1024, STRIPES.num_pixels), np.uint8).tobytes()
    address = httpx.URL(server.url(""))
    raw = [*(data for data, _ in REFUSED.values()), *MALFORMED.values(), *ANSWERED.values()]
    async with httpx.AsyncClient(base_url=address, timeout=30) as http:
        for hostile, data in itertools.cycle(
            itertools.zip_longest((request for request, _ in REQUESTS.values()), raw)
        ):
            if time.monotonic() > until:
                return
            statuses[(await http.post(INFER, content=many, headers=RAW)).status_code] += 1
            statuses[(await http.post("/predict", content=PNG)).status_code] += 1
            statuses[(await http.send(addressed(hostile, str(address)))).status_code] += 1
            if data:
                reader, writer = await asyncio.open_connection(address.host, address.port)
                with suppress(OSError, TimeoutError):
                    writer.write(data)
                    await asyncio.wait_for(reader.read(1 << 16), 1)
                writer.close()


async def swaps(server: Server, until: float) -> None:
    models = [publish(server.storage, scale=0.5), server.model]
    for model in itertools.cycle(models):
        promote(server.storage, model.ref, "production")
        if (left := until - time.monotonic()) < 0:
            return
        await asyncio.sleep(min(SWAP_S, left))


async def watch(server: Server, samples: dict[str, list[float]], until: float) -> None:
    """Ten samples a minute of every process, and a line each minute."""
    named = processes(server)
    for count in itertools.count():
        for name, pid in named.items():
            samples[name].append(memory_mib(pid))
        replica = Path(f"/proc/{named['ServeReplica']}")
        samples["files"].append(len(os.listdir(replica / "fd")))
        samples["threads"].append(len(os.listdir(replica / "task")))
        if count % 10 == 0:
            now = {name: round(values[-1], 1) for name, values in samples.items()}
            print(f"minute {count // 10}: {now}", flush=True)
        if time.monotonic() > until:
            return
        await asyncio.sleep(6)


async def soak(server: Server, minutes: float, scratch: Path) -> dict[str, float]:
    samples, statuses = defaultdict[str, list[float]](list), Counter[int]()
    until = time.monotonic() + 60 * minutes
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fast(server, scratch, 60 * minutes))
        tasks.create_task(others(server, statuses, until))
        tasks.create_task(swaps(server, until))
        tasks.create_task(watch(server, samples, until))
    print(f"statuses of the others: {dict(statuses)}")

    def grown(values: list[float]) -> float:
        begin = len(values) // 5
        return round(float(np.mean(values[-10:]) - np.mean(values[begin : begin + 10])), 1)

    return {name: grown(values) for name, values in samples.items()}


def main() -> None:
    minutes = float(os.environ.get("MINUTES", "20"))
    with (
        tempfile.TemporaryDirectory() as root,
        tempfile.TemporaryDirectory() as scratch,
        started(root, "--max-body-mib", 1, timeout_s=60 * minutes + 240) as server,
    ):
        grown = asyncio.run(soak(server, minutes, Path(scratch)))
    print(json.dumps({f"{name}_grown": value for name, value in grown.items()}))
    if grown["ServeReplica"] > BOUND_MIB:
        sys.exit(f"The replica grew by more than {BOUND_MIB} MiB.")


if __name__ == "__main__":
    main()
