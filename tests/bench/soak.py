"""A soak test: 20 minutes of continuous load on a server, to see whether its memory grows.

    make soak            # MINUTES=20

The load: one image as JSON over 16 connections at full speed; in turn, requests of 1,024 images,
image files, and the hostile requests of the tests; and a promotion every half minute. Prints every
minute the memory of each process (PSS), and one line of JSON last: the growth in MiB from the
minute after the first fifth to the last minute, and that of the replica's open files and threads.
Exits with 1 if the replica grew by more than BOUND_MIB.
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
from tests.e2e.test_edge import ANSWERED, MALFORMED, REJECTED, post
from tests.support.hostile_requests import PNG, REQUESTS, address_to
from tests.support.servers import Server, started
from tests.support.stripes_model import STRIPES, publish

BOUND_MIB = 16
SWAP_S = 30
INFER = "/v2/models/stripes/infer"
RAW = {"inference-header-content-length": "0"}


def processes(server: Server) -> dict[str, int]:
    """Return the IDs of the server's processes by name."""
    ids = {}
    for line in server.command.running():
        pid, command = line.split(" ", 1)
        name = re.search(r"ServeReplica|ServeController|haproxy -db|raylet|gcs_server", command)
        if name:
            ids[name[0]] = int(pid)
    return ids


def memory_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"Pss: +(\d+)", text)[0]) / 1024


async def send_single_images(server: Server, scratch: Path, seconds: float) -> None:
    """Send one image as JSON at full speed, by the load generator of the benchmark."""
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


async def send_other_requests(server: Server, statuses: Counter[int], until: float) -> None:
    """Send large requests, image files and hostile requests, over new and kept connections."""
    many = np.zeros((1024, STRIPES.num_pixels), np.uint8).tobytes()
    address = httpx.URL(server.url(""))
    raw = [*(data for data, _ in REJECTED.values()), *MALFORMED.values(), *ANSWERED.values()]
    async with httpx.AsyncClient(base_url=address, timeout=30) as http:
        for hostile, data in itertools.cycle(
            itertools.zip_longest((request for request, _ in REQUESTS.values()), raw)
        ):
            if time.monotonic() > until:
                return
            statuses[(await http.post(INFER, content=many, headers=RAW)).status_code] += 1
            statuses[(await http.post("/predict", content=PNG)).status_code] += 1
            statuses[(await http.send(address_to(hostile, str(address)))).status_code] += 1
            if data:
                reader, writer = await asyncio.open_connection(address.host, address.port)
                with suppress(OSError, TimeoutError):
                    writer.write(data)
                    await asyncio.wait_for(reader.read(1 << 16), 1)
                writer.close()


async def swap_versions(server: Server, until: float) -> None:
    models = [publish(server.storage, scale=0.5), server.model]
    for model in itertools.cycle(models):
        promote(server.storage, model.ref, "production")
        remaining_s = until - time.monotonic()
        if remaining_s < 0:
            return
        await asyncio.sleep(min(SWAP_S, remaining_s))


async def sample_memory(server: Server, samples: dict[str, list[float]], until: float) -> None:
    """Sample every process 10 times a minute, and print a line each minute."""
    ids = processes(server)
    for count in itertools.count():
        for name, pid in ids.items():
            samples[name].append(memory_mib(pid))
        replica = Path(f"/proc/{ids['ServeReplica']}")
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
        tasks.create_task(send_single_images(server, scratch, 60 * minutes))
        tasks.create_task(send_other_requests(server, statuses, until))
        tasks.create_task(swap_versions(server, until))
        tasks.create_task(sample_memory(server, samples, until))
    print(f"statuses of the other requests: {dict(statuses)}")

    def growth(values: list[float]) -> float:
        begin = len(values) // 5
        return round(float(np.mean(values[-10:]) - np.mean(values[begin : begin + 10])), 1)

    return {name: growth(values) for name, values in samples.items()}


def main() -> None:
    minutes = float(os.environ.get("MINUTES", "20"))
    with (
        tempfile.TemporaryDirectory() as root,
        tempfile.TemporaryDirectory() as scratch,
        started(root, "--max-body-mib", 1, timeout_s=60 * minutes + 240) as server,
    ):
        growth = asyncio.run(soak(server, minutes, Path(scratch)))
    print(json.dumps({f"{name}_grown": value for name, value in growth.items()}))
    if growth["ServeReplica"] > BOUND_MIB:
        sys.exit(f"The replica grew by more than {BOUND_MIB} MiB.")


if __name__ == "__main__":
    main()
