"""The longest time for which one request stops a server for all others, and the memory it takes.

    python -m tests.bench.stalls ROOT        # ROOT: a storage root with a model mnist/production

For each of the worst requests, another client asks for one image at a time, and the longest answer
is noted. Memory is the peak of the replica, and of the process beside it that decodes. Prints a
table, and one line of JSON last: the longest answer of all.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import psutil
from PIL import Image, PngImagePlugin
from rich.console import Console
from rich.table import Table

from tests.support.servers import serving

SIDE, ROWS = 28, 4096

INFER, V1, PREDICT = "/v2/models/mnist/infer", "/v1/models/mnist:predict", "/predict"

RAW = "Inference-Header-Content-Length: 0"

BOUNDARY = "x"


def requests() -> Iterator[tuple[str, str, Sequence[str], bytes]]:
    """Yield the name, the path, the headers and the body of each request."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (ROWS, SIDE, SIDE), np.uint8)
    large, photo = (
        png(np.full((4096, 4096, 4), 255, np.uint8)),
        png(np.add.outer(np.arange(480), np.arange(640) // 3).astype(np.uint8)),
    )
    tensor: dict[str, object] = {"name": "image", "datatype": "UINT8", "shape": images.shape}
    yield "nothing", INFER, [RAW], images[:1].tobytes()
    yield "4,096 images, raw pixels", INFER, [RAW], images.tobytes()
    yield "the same, its answer in gzip", INFER, [RAW, *GZIP_ANSWER], images.tobytes()
    yield "4,096 images, JSON", INFER, [], infer(tensor, images.tolist())
    floats = images[:3000].astype(float)
    yield (
        "3,000 images, JSON of floats",
        INFER,
        [],
        infer(tensor | {"shape": floats.shape}, floats.tolist()),
    )
    yield "15 MiB of empty lists", INFER, [], b"[" + b"[]," * 5_000_000 + b"[]]"
    yield (
        "16 MiB of zeros in gzip",
        INFER,
        [RAW, "Content-Encoding: gzip"],
        gzip.compress(bytes(1 << 24)),
    )
    yield "a PNG of 4096 x 4096", PREDICT, [], large
    yield "160 of them in V1", V1, [], instances(160 * [large])
    yield "256 photos of 640 x 480 in V1", V1, [], instances(256 * [photo])
    yield "a form of 200 PNG of 4096 x 4096", PREDICT, FORM, form(200 * [large])
    yield "a form of 4,096 small PNG", PREDICT, FORM, form([png(image) for image in images])
    yield "a PNG with 15 MiB of text", PREDICT, [], png(images[0], text="x" * (1 << 19), texts=1000)
    yield "a JPEG of 3 million markers", PREDICT, [], b"\xff\xd8" + b"\xff\xe1\0\2" * 3_000_000


GZIP_ANSWER = ("Accept: application/json", "Accept-Encoding: gzip")

FORM = (f"Content-Type: multipart/form-data; boundary={BOUNDARY}",)


def png(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], text: str = "", texts: int = 0
) -> bytes:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for number in range(texts):
        info.add_text(f"t{number}", text, zip=True)
    Image.fromarray(pixels).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def infer(tensor: dict[str, object], data: object) -> bytes:
    return json.dumps({"inputs": [tensor | {"data": data}]}).encode()


def instances(files: list[bytes]) -> bytes:
    encoded = [{"b64": base64.b64encode(file).decode()} for file in files]
    return json.dumps({"instances": encoded}).encode()


def form(files: list[bytes]) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=i; filename=i.png\r\n\r\n"
    return b"".join(head.encode() + file + b"\r\n" for file in files) + f"--{BOUNDARY}--".encode()


class Probe(threading.Thread):
    """Asks for one image at a time, and notes the longest answer and the peaks of memory."""

    def __init__(self, port: int, replica: psutil.Process) -> None:
        super().__init__()
        self._port, self._replica = port, replica
        self._ended = threading.Event()
        self.longest_s, self.replica_mib, self.decoder_mib = 0.0, 0, 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        header, _, value = RAW.partition(": ")
        while not self._ended.is_set():
            started = time.perf_counter()
            connection.request("POST", INFER, bytes(SIDE * SIDE), {header: value})
            connection.getresponse().read()
            self.longest_s = max(self.longest_s, time.perf_counter() - started)
            with suppress(psutil.Error):
                self.replica_mib = max(self.replica_mib, _mib(self._replica))
                decoders = sum(map(_mib, self._replica.children()))
                self.decoder_mib = max(self.decoder_mib, decoders)

    def end(self) -> None:
        self._ended.set()
        self.join()


def _mib(process: psutil.Process) -> int:
    return int(process.memory_info().rss) >> 20


def send(port: int, path: str, headers: Sequence[str], body: bytes) -> tuple[str, float]:
    """Send a request with curl; return the status of the answer, and the seconds it took."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        options = [option for header in headers for option in ("--header", header)]
        done = subprocess.run(
            [
                *("curl", "--silent", "--output", "/dev/null"),
                *("--write-out", "%{http_code} %{time_total}", *options),
                *("--data-binary", f"@{file.name}", f"http://127.0.0.1:{port}{path}"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    status, seconds = done.stdout.split()
    return status, float(seconds)


def main() -> None:
    root = sys.argv[1] if sys.argv[1:] else "artifacts"
    table = Table(
        "request", "status", "s", "longest answer to others, ms", "replica, MiB", "decoder, MiB"
    )
    worst = 0.0
    command = serving("--root", root, "--port", 0)
    with command.started() as process:
        assert process.stdout
        port = int(process.stdout.readline().split()[3].rpartition(":")[2])
        (replica,) = (p for p in psutil.process_iter() if "ServeReplica" in " ".join(p.cmdline()))
        for name, path, headers, body in requests():
            probe = Probe(port, replica)
            probe.start()
            time.sleep(0.5)
            status, seconds = send(port, path, headers, body)
            time.sleep(0.5)
            probe.end()
            worst = max(worst, probe.longest_s)
            memory = f"{probe.replica_mib}", f"{probe.decoder_mib}"
            table.add_row(name, status, f"{seconds:.2f}", f"{1000 * probe.longest_s:.0f}", *memory)
    Console(width=120).print(table)
    print(json.dumps({"longest_stall_ms": round(1000 * worst)}))


if __name__ == "__main__":
    main()
