"""Preprocessing and scoring of 10^5, 10^6 and 10^7 digits: `make bench-data`. Twenty minutes.

    MNIST_DIR=... make bench-data          # with MNIST_DIR, a folder of MNIST's files

The digits are MNIST's, deformed at random, so that no two are alike; they and all that is made of
them take 14 GB of disk. Peers are written as well as ours, on as many cores: a pyarrow writer of
the same shards, and a loop of onnxruntime over the same files with the same batches. Ours and peers
take turns; times are medians of three rounds. What ours takes for the smallest data that there are,
its start, is taken off its times. Memory is that of all processes (PSS), at most, in a run by
itself. Prints a table, and one line of JSON last.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from rich.console import Console
from rich.table import Table

from pipeline.cluster import connection
from pipeline.config import Data
from pipeline.data.catalog import ROLES
from pipeline.data.sources import open_source
from tests.support.processes import Command

SIZES = [int(float(size)) for size in os.environ.get("SIZES", "1e5 1e6 1e7").split()]
SMALLEST = 1_000
ROUNDS = 3
ROWS_PER_SHARD = 10_000
BATCH = 4096
CORES = os.cpu_count() or 1
PIXELS = 28 * 28
HEADER = 16


def generate(folder: Path, rows: int, digits: Path) -> None:
    """The four files; a tenth of the rows are `test`. Deformed by tasks of Ray Data."""
    folder.mkdir()
    for split, count, seed in (("train", rows - rows // 10, 0), ("test", rows // 10, rows)):
        images = folder / ROLES[f"{split}_images"]
        images.write_bytes(b"\0\0\x08\3" + np.array([count, 28, 28], ">u4").tobytes())
        os.truncate(images, HEADER + count * PIXELS)
        labels = np.random.default_rng(seed).integers(0, 10, count).astype(np.uint8)
        head = b"\0\0\x08\1" + np.array([count], ">u4").tobytes()
        (folder / ROLES[f"{split}_labels"]).write_bytes(head + labels.tobytes())
        starts = [{"start": start} for start in range(0, count, ROWS_PER_SHARD)]
        options = {"images": images, "count": count, "seed": seed, "digits": digits}
        work = ray.data.from_items(starts, override_num_blocks=len(starts))
        work.map(_deform, fn_kwargs=options).materialize()  # type: ignore[arg-type]
    # Else those who flush what they write would wait for this too.
    os.sync()


def _deform(
    item: dict[str, Any], *, images: Path, count: int, seed: int, digits: Path
) -> dict[str, Any]:
    import torch

    from pipeline.training.augment import Augment
    from pipeline.training.batch_loader import RankSlice

    torch.set_num_threads(1)
    start = item["start"]
    rows = min(ROWS_PER_SHARD, count - start)
    known = np.load(digits, mmap_mode="r")
    random = np.random.default_rng(seed + start)
    chosen = torch.from_numpy(known[random.integers(0, len(known), rows)].reshape(rows, PIXELS))
    deform = Augment(28, 28, 1.0, torch.device("cpu"))
    deform.start_epoch(1, seed + start)
    pixels = deform(chosen, RankSlice(0, rows, rows)).clamp(0, 255).to(torch.uint8).numpy()
    with images.open("r+b") as file:
        file.seek(HEADER + start * PIXELS)
        file.write(pixels.tobytes())
    return {"rows": rows}


def seconds_of(*args: object) -> float:
    """What a command of the pipeline takes."""
    command = Command(sys.executable, "-m", "pipeline", *args)
    started = time.perf_counter()
    subprocess.run(command.args, env=command.env, check=True)
    return time.perf_counter() - started


def peak_mib_of(*args: object) -> float:
    """The memory of a command and all that it starts. To look at it takes a third of a core."""
    command = Command(sys.executable, "-m", "pipeline", *args)
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            total = 0
            for line in command.left():
                with suppress(OSError):
                    text = Path(f"/proc/{line.split()[0]}/smaps_rollup").read_text()
                    total += int(re.findall(r"Pss: +(\d+)", text)[0])
            peak = max(peak, total / 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with command.started(timeout_s=3600) as process:
        code = process.wait()
    done.set()
    watcher.join()
    if code:
        sys.exit(code)
    return peak


@contextmanager
def new(folder: Path) -> Iterator[None]:
    folder.mkdir()
    yield
    shutil.rmtree(folder)


def in_processes(work: Callable[[Any], None], pieces: list[Any]) -> float:
    """Seconds that as many processes as cores take; their start is not counted."""
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        list(pool.map(_nothing, range(8 * CORES)))
        started = time.perf_counter()
        list(pool.map(work, pieces))
        return time.perf_counter() - started


def _nothing(number: int) -> None:
    time.sleep(0.05)


def write_shards(source: Path, out: Path, rows: int) -> float:
    counts = (("train", rows - rows // 10), ("test", rows // 10))
    pieces = [
        (split, start, min(start + ROWS_PER_SHARD, count))
        for split, count in counts
        for start in range(0, count, ROWS_PER_SHARD)
    ]
    with new(out):
        return in_processes(partial(_write_shard, source=source, out=out), pieces)


def _write_shard(piece: tuple[str, int, int], *, source: Path, out: Path) -> None:
    split, start, stop = piece
    with (source / ROLES[f"{split}_images"]).open("rb") as file:
        file.seek(HEADER + start * PIXELS)
        pixels = pa.py_buffer(file.read((stop - start) * PIXELS))
    with (source / ROLES[f"{split}_labels"]).open("rb") as file:
        file.seek(8 + start)
        labels = np.frombuffer(file.read(stop - start), np.uint8)
    kind = pa.binary(PIXELS)
    images = pa.FixedSizeBinaryArray.from_buffers(kind, stop - start, [None, pixels])
    table = pa.table({"id": np.arange(start, stop), "image": images, "label": labels})
    options = {"use_dictionary": ["label"], "write_statistics": ["id", "label"]}
    pq.write_table(table, out / f"{split}-{start}", compression="zstd", **options)


def score_shards(shards: list[Path], model: Path, out: Path) -> float:
    with new(out):
        return in_processes(partial(_score_shard, model=str(model), out=out), shards)


def _score_shard(shard: Path, *, model: str, out: Path) -> None:
    import onnxruntime as ort

    if model not in _sessions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        _sessions[model] = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    table = pq.read_table(shard, columns=["id", "image"], use_threads=False)
    images = np.frombuffer(table["image"].chunk(0).buffers()[1], np.uint8).reshape(-1, 28, 28)
    found = [
        _sessions[model].run(None, {"image": images[start : start + BATCH]})
        for start in range(0, len(images), BATCH)
    ]
    probabilities, prediction = (np.concatenate(parts) for parts in zip(*found, strict=True))
    columns = {"id": table["id"], "prediction": prediction, "confidence": probabilities.max(1)}
    pq.write_table(pa.table(columns), out / shard.name, compression="zstd")


_sessions: dict[str, Any] = {}


class Cost(NamedTuple):
    """Seconds of ours and of its peer, medians of rounds in turn, and the peak of ours."""

    seconds: float
    peer: float
    peak_mib: float


def cost(*ours: object, peer: Callable[[], float]) -> Cost:
    peak_mib = peak_mib_of(*ours)
    seconds, beside = zip(*((seconds_of(*ours), peer()) for _ in range(ROUNDS)), strict=True)
    return Cost(median(seconds), median(beside), peak_mib)


def main() -> None:
    if not os.environ.get("MNIST_DIR"):
        sys.exit("MNIST_DIR is not set: give a folder of the four files of MNIST.")
    with tempfile.TemporaryDirectory(dir=os.environ.get("SCRATCH")) as scratch:
        found = run(Path(scratch))
    table = Table("what", "rows", "seconds", "of it start", "peak MiB", "peer", "ours / peer")
    figures = dict[str, float]()
    for what, peer in (("preprocess", "pyarrow"), ("score", "onnxruntime")):
        start = found[what, SMALLEST].seconds
        took = {rows: found[what, rows].seconds - start for rows in SIZES}
        for rows in SIZES:
            seconds, beside, peak_mib = found[what, rows]
            ratio = beside / took[rows]
            row = (rows, seconds, start, peak_mib, beside)
            table.add_row(what, *(f"{figure:,.1f}" for figure in row), f"{ratio:.2f}")
        least, most = SIZES[0], SIZES[-1]
        peak, peak_of_least = (found[what, rows].peak_mib for rows in (most, least))
        figures |= {
            f"{what}_vs_{peer}": ratio,
            f"{what}_growth": took[most] / (most / least * took[least]),
            f"{what}_peak_ratio": peak / peak_of_least,
        }
    Console(width=120).print(table)
    print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}))


def run(scratch: Path) -> dict[tuple[str, int], Cost]:
    root = scratch / "root"
    mnist = os.environ["MNIST_DIR"]
    seconds_of("run", "--root", root, "--data.source", mnist)
    (model,) = root.glob("models/mnist/*/model.onnx")
    digits = scratch / "digits.npy"
    np.save(digits, open_source(Data(source=mnist)).splits["train"].read(0, 60_000).images)
    found = dict[tuple[str, int], Cost]()
    common = ("--root", root, "--force")
    for rows in (SMALLEST, *SIZES):
        source, peer = scratch / f"source-{rows}", scratch / "peer"
        with connection.connected():
            generate(source, rows, digits)
        name = f"digits-{rows}"
        found["preprocess", rows] = cost(
            *("preprocess", *common, "--data.name", name, "--data.source", source),
            peer=partial(write_shards, source, peer, rows),
        )
        (folder,) = (root / "datasets" / name).iterdir()
        split, out = f"{name}/{folder.name}/train", scratch / f"scores-{rows}"
        shards = sorted((folder / "train").iterdir())
        found["score", rows] = cost(
            *("score", *common, "--input", split, "--output", out),
            *("--rows-per-shard", ROWS_PER_SHARD),
            peer=partial(score_shards, shards, model, peer),
        )
        for used in (source, folder, out):
            shutil.rmtree(used)
    return found


if __name__ == "__main__":
    main()
