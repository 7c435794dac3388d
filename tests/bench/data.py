"""Benchmark of preprocessing and scoring 10^5, 10^6 and 10^7 digits. Takes 20 minutes.

    MNIST_DIR=... make bench-data          # MNIST_DIR: a folder of MNIST's files

The digits are MNIST's, augmented at random, so that no two are equal. They and the outputs take 14
GB of disk. A line is of MNIST's 70,000 digits as PNG files in folders of classes. The peers use as
many cores: a pyarrow writer of the same shards, Pillow and pyarrow for PNG files, and a loop of
onnxruntime over the same files with the same batches. The pipeline and its peers take turns; times
are medians of three rounds. The time for SMALLEST rows, which is the start of the command, is
subtracted from the pipeline's times. Memory is the peak of all processes (PSS), from a separate
run. Prints a table, and one line of JSON last.
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
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import ray.data
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.cluster import connection
from pipeline.config import Data
from pipeline.data.catalog import ROLES
from pipeline.data.sources import Source, open_source
from tests.bench.data_peers import (
    HEADER,
    PIXELS,
    ROWS_PER_SHARD,
    score_shards,
    write_png_shards,
    write_shards,
)
from tests.support.processes import Command

SIZES = [int(float(size)) for size in os.environ.get("SIZES", "1e5 1e6 1e7").split()]
SMALLEST = 1_000
ROUNDS = 3
NUM_PNGS = int(os.environ.get("NUM_PNGS", "70000"))


def generate(folder: Path, rows: int, digits: Path) -> None:
    """Write the four IDX files, augmented by tasks of Ray Data; a tenth of the rows are `test`."""
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
        work.map(_write_augmented, fn_kwargs=options).materialize()  # type: ignore[arg-type]
    # Otherwise a benchmark that flushes its output would also wait for these files.
    os.sync()


def _write_augmented(
    item: dict[str, Any], *, images: Path, count: int, seed: int, digits: Path
) -> dict[str, Any]:
    import torch

    from pipeline.training.augment import Augment
    from pipeline.training.batch_loader import RankSlice

    torch.set_num_threads(1)
    start = item["start"]
    rows = min(ROWS_PER_SHARD, count - start)
    originals = np.load(digits, mmap_mode="r")
    random = np.random.default_rng(seed + start)
    indices = random.integers(0, len(originals), rows)
    chosen = torch.from_numpy(originals[indices].reshape(rows, PIXELS))
    augment = Augment(28, 28, 1.0, 1, torch.device("cpu"))
    noise = augment.draw(seed + start, rows)
    pixels = augment(chosen, RankSlice(0, rows, rows), noise).clamp(0, 255).to(torch.uint8).numpy()
    with images.open("r+b") as file:
        file.seek(HEADER + start * PIXELS)
        file.write(pixels.tobytes())
    return {"rows": rows}


def seconds_of(*args: object) -> float:
    """Run a command of the pipeline; return its duration."""
    command = Command(sys.executable, "-m", "pipeline", *args)
    started = time.perf_counter()
    subprocess.run(command.args, env=command.env, check=True)
    return time.perf_counter() - started


def peak_mib_of(*args: object) -> float:
    """Return the peak memory of a command and its processes. Sampling takes a third of a core."""
    command = Command(sys.executable, "-m", "pipeline", *args)
    peak = 0.0
    stopped = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stopped.wait(0.1):
            total = 0
            for line in command.running():
                with suppress(OSError):
                    text = Path(f"/proc/{line.split()[0]}/smaps_rollup").read_text()
                    total += int(re.findall(r"Pss: +(\d+)", text)[0])
            peak = max(peak, total / 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with command.started(timeout_s=3600) as process:
        code = process.wait()
    stopped.set()
    watcher.join()
    if code:
        sys.exit(code)
    return peak


def write_pngs(source: Source, folder: Path, count: int) -> None:
    """Write digits as `SPLIT/CLASS/*.png`, a seventh of them as `test`."""
    for split, number in (("train", count - count // 7), ("test", count // 7)):
        batch = source.splits[split].read(0, number)
        assert batch.labels is not None
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
        for row, (image, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
            Image.fromarray(image).save(folder / split / str(label) / f"{row}.png")
    os.sync()


class Cost(NamedTuple):
    """Median seconds of the pipeline and of its peer, and the pipeline's peak memory."""

    seconds: float
    peer: float
    peak_mib: float


def measure(*arguments: object, peer: Callable[[], float]) -> Cost:
    peak_mib = peak_mib_of(*arguments)
    rounds = [(seconds_of(*arguments), peer()) for _ in range(ROUNDS)]
    seconds, peer_seconds = zip(*rounds, strict=True)
    return Cost(median(seconds), median(peer_seconds), peak_mib)


def main() -> None:
    if not os.environ.get("MNIST_DIR"):
        sys.exit("MNIST_DIR is not set: set it to a folder of the four files of MNIST.")
    with tempfile.TemporaryDirectory(dir=os.environ.get("SCRATCH")) as scratch:
        costs = run(Path(scratch))
    table = Table("stage", "rows", "seconds", "start", "peak MiB", "peer", "speed vs peer")
    figures = dict[str, float]()
    for stage, peer in (("preprocess", "pyarrow"), ("score", "onnxruntime")):
        start = costs[stage, SMALLEST].seconds
        net = {rows: costs[stage, rows].seconds - start for rows in SIZES}
        for rows in SIZES:
            seconds, peer_seconds, peak_mib = costs[stage, rows]
            ratio = peer_seconds / net[rows]
            row = (rows, seconds, start, peak_mib, peer_seconds)
            table.add_row(stage, *(f"{figure:,.1f}" for figure in row), f"{ratio:.2f}")
        least, most = SIZES[0], SIZES[-1]
        peak, peak_of_least = (costs[stage, rows].peak_mib for rows in (most, least))
        figures |= {
            f"{stage}_vs_{peer}": ratio,
            f"{stage}_growth": net[most] / (most / least * net[least]),
            f"{stage}_peak_ratio": peak / peak_of_least,
        }
    seconds, peer_seconds, peak_mib = costs["preprocess PNG", NUM_PNGS]
    start = costs["preprocess", SMALLEST].seconds
    figures["preprocess_vs_pillow"] = ratio = peer_seconds / (seconds - start)
    row = (NUM_PNGS, seconds, start, peak_mib, peer_seconds)
    table.add_row("preprocess PNG", *(f"{figure:,.1f}" for figure in row), f"{ratio:.2f}")
    Console(width=120).print(table)
    print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}))


def run(scratch: Path) -> dict[tuple[str, int], Cost]:
    root = scratch / "root"
    mnist = os.environ["MNIST_DIR"]
    seconds_of("run", "--root", root, "--data.source", mnist)
    (model,) = root.glob("models/mnist/*/model.onnx")
    digits = scratch / "digits.npy"
    source = open_source(Data(source=mnist))
    np.save(digits, source.splits["train"].read(0, 60_000).images)
    costs = dict[tuple[str, int], Cost]()
    common = ("--root", root, "--force")
    pngs, peer = scratch / "png", scratch / "peer"
    write_pngs(source, pngs, NUM_PNGS)
    costs["preprocess PNG", NUM_PNGS] = measure(
        *("preprocess", *common, "--data.name", "png", "--data.source", pngs),
        peer=partial(write_png_shards, pngs, peer),
    )
    shutil.rmtree(pngs)
    for rows in (SMALLEST, *SIZES):
        generated = scratch / f"source-{rows}"
        with connection.connected():
            generate(generated, rows, digits)
        name = f"digits-{rows}"
        costs["preprocess", rows] = measure(
            *("preprocess", *common, "--data.name", name, "--data.source", generated),
            peer=partial(write_shards, generated, peer, rows),
        )
        (folder,) = (root / "datasets" / name).iterdir()
        split, out = f"{name}/{folder.name}/train", scratch / f"scores-{rows}"
        shards = sorted((folder / "train").iterdir())
        costs["score", rows] = measure(
            *("score", *common, "--input", split, "--output", out),
            *("--rows-per-shard", ROWS_PER_SHARD),
            peer=partial(score_shards, shards, model, peer),
        )
        for used in (generated, folder, out):
            shutil.rmtree(used)
    return costs


if __name__ == "__main__":
    main()
