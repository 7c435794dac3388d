"""Benchmark of serving against peers on one machine, 16 connections. Takes 10 minutes.

    MNIST_DIR=... make bench-serve          # MNIST_DIR: a folder of MNIST's files

Every server gets the same model file and the same bytes, one server after the other, in rounds.
Each has one process and one thread for the model. Every answer is checked. The project's server
also runs with four times the connections, and with uint8 weights. Prints a table, and one line of
JSON last, in which each ratio is the median over rounds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.artifacts.registry import find_model, model_folder
from pipeline.artifacts.storage import Storage
from pipeline.models.predictor import Predictor
from serving.ingress.ports import free_ports

ROUNDS = 5
SECONDS = 3.0
CONNECTIONS = 16
PACE = 0.5
"""Load at which latencies are compared, as a fraction of bare uvicorn's rate."""
MODEL = "mnist/production"
PATH = "/v2/models/mnist/infer"
HERE = Path(__file__).parent
PEERS = Path(".venv-others").absolute()
LOADS = {"json1": 1, "bytes1": 1, "bytes64": 64, "bytes1024": 1024}
JSON_ONLY = ("mlserver", "litserve", "bentoml")
OVERLOAD = 4
"""Factor of connections, with 1,024 images each: four times the capacity of the queue."""


def write_requests(predictor: Predictor, folder: Path) -> dict[str, tuple[Path, Path]]:
    """Write two files per load: a request, and the bytes that its answer must contain."""
    shape = (max(LOADS.values()), *predictor.model.image.shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    files = {}
    folder.mkdir()
    for kind, rows in LOADS.items():
        expected = predictor.predict(images[:rows]).prediction
        if kind == "json1":
            tensor = {"name": "image", "shape": [1, *shape[1:]], "datatype": "UINT8"}
            body = json.dumps({"inputs": [tensor | {"data": images[0].ravel().tolist()}]}).encode()
            head, answer = "Content-Type: application/json", f'"data":[{expected[0]}]'.encode()
        else:
            body, answer = images[:rows].tobytes(), expected.tobytes()
            head = "Inference-Header-Content-Length: 0"
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n{head}\r\nContent-Length: {len(body)}"
        files[kind] = (folder / kind, folder / f"{kind}.answer")
        files[kind][0].write_bytes(head.encode() + b"\r\n\r\n" + body)
        files[kind][1].write_bytes(answer)
    return files


def commands(
    root: str, uint8: str, model_file: str, scratch: Path, port: int
) -> dict[str, list[str]]:
    """Return the command of each server for a port; `uint8` is the model with uint8 weights."""
    python, address = [sys.executable, "-m"], ["--host", "127.0.0.1", "--port", str(port)]
    settings = {"name": "mnist", "implementation": "serve_mlserver.Model"}
    server = {"host": "127.0.0.1", "http_port": port, "parallel_workers": 0, "debug": False}
    server |= {"grpc_port": free_ports("127.0.0.1", 1)[0], "metrics_endpoint": None}
    (scratch / "model-settings.json").write_text(
        json.dumps(settings | {"parameters": {"uri": model_file}})
    )
    (scratch / "settings.json").write_text(json.dumps(server))
    ours = [*python, "serving", "--root", root, "--port", str(port), "--model"]
    return {
        "ours": [*ours, MODEL],
        "uint8": [*ours, uint8],
        "uvicorn": [*python, "tests.bench.serve_uvicorn", root, MODEL, str(port)],
        "mlserver": [str(PEERS / "mlserver/bin/mlserver"), "start", str(scratch)],
        "litserve": [
            str(PEERS / "litserve/bin/python"),
            str(HERE / "serve_litserve.py"),
            model_file,
            str(port),
            PATH,
        ],
        "bentoml": [str(PEERS / "bentoml/bin/bentoml"), "serve", "serve_bentoml:Service", *address],
    }


@contextmanager
def server(name: str, root: str, uint8: str, model_file: str) -> Iterator[tuple[int, float]]:
    """Start a server; yield its port and the seconds until its first answer."""
    port = free_ports("127.0.0.1", 1)[0]
    with tempfile.TemporaryDirectory() as scratch:
        command = commands(root, uint8, model_file, Path(scratch), port)[name]
        env = os.environ | {"MODEL_FILE": model_file}
        if name in JSON_ONLY:
            env |= {"PYTHONPATH": str(HERE), "PATH": f"{PEERS / name}/bin:{os.environ['PATH']}"}
        started = time.perf_counter()
        with (
            Path(scratch, "log").open("w") as log,
            subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True
            ) as process,
        ):
            try:
                wait_until_ready(port, process, Path(scratch, "log"))
                yield port, time.perf_counter() - started
            finally:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(8)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers a GET of the prediction route, which every server rejects."""
    url = f"http://127.0.0.1:{port}{PATH}"
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=10)
        except urllib.error.HTTPError as error:
            if error.code in (404, 405):
                return
        except OSError:
            if process.poll() is not None:
                break
        time.sleep(0.1)
    sys.exit(f"The server does not answer:\n{log.read_text()}")


def load(
    port: int, files: tuple[Path, Path], rate: float = 0.0, connections: int = CONNECTIONS
) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.load", "127.0.0.1", port, *files, connections]
    command += [SECONDS, rate]
    completed = subprocess.run(
        [str(argument) for argument in command], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, float] = json.loads(completed.stdout)
    return result


def main() -> None:
    source = os.environ.get("MNIST_DIR")
    if not source:
        sys.exit("MNIST_DIR is not set: set it to a folder of the four files of MNIST.")
    results = defaultdict[tuple[str, str], list[dict[str, float]]](list)
    starts = list[float]()
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as scratch:
        pipeline = [sys.executable, "-m", "pipeline"]
        subprocess.run([*pipeline, "run", "--root", root, "--data.source", source], check=True)
        storage = Storage(root)
        model = find_model(storage, MODEL)
        export = [*pipeline, "export", "--root", root, "--run", model.run, "--uint8"]
        exported = subprocess.run(export, check=True, stdout=subprocess.PIPE, text=True)
        uint8 = exported.stdout.strip()
        model_file = f"{root}/{model_folder(model.name, model.version)}/model.onnx"
        files, files_uint8 = (
            write_requests(Predictor(storage, manifest), Path(scratch, manifest.version))
            for manifest in (model, find_model(storage, uint8))
        )
        for _ in range(ROUNDS):
            for name in ("uvicorn", "ours", "uint8", *JSON_ONLY):
                with server(name, root, uint8, model_file) as (port, start_s):
                    requests = files_uint8 if name == "uint8" else files
                    for kind in ("json1",) if name in JSON_ONLY else LOADS:
                        results[name, kind].append(load(port, requests[kind]))
                        assert results[name, kind][-1]["refused"] == 0
                    if name in ("uvicorn", "ours"):
                        rate = PACE * results["uvicorn", "json1"][-1]["rate"]
                        results[name, "paced"].append(load(port, files["json1"], rate))
                    if name == "ours":
                        starts.append(start_s)
                        overload = load(
                            port, files["bytes1024"], connections=OVERLOAD * CONNECTIONS
                        )
                        results[name, "overload"].append(overload)

    columns = ("server", "load", "requests/s", "p50 ms", "p99 ms", "refused", "rate of each round")
    table = Table(*columns)
    for (name, kind), rounds in results.items():
        figures = [f"{median(r[figure] for r in rounds):,.2f}" for figure in ("rate", "p50", "p99")]
        figures.append(f"{sum(r['refused'] for r in rounds):,}")
        table.add_row(name, kind, *figures, "  ".join(f"{r['rate']:,.0f}" for r in rounds))
    Console(width=120).print(table)

    def ratio(kind: str, peer: str, figure: str = "rate") -> float:
        pairs = zip(results["ours", kind], results[peer, kind], strict=True)
        return round(median(ours[figure] / other[figure] for ours, other in pairs), 4)

    ratios = {f"json1_vs_{p}": ratio("json1", p) for p in JSON_ONLY}
    ratios |= {f"{kind}_vs_uvicorn": ratio(kind, "uvicorn") for kind in LOADS}
    ratios |= {"p99_vs_uvicorn": ratio("paced", "uvicorn", "p99"), "start_s": median(starts)}
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
