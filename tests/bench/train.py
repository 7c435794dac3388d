"""Benchmark of training against peers: plain PyTorch, JAX, scikit-learn. Takes 20 minutes.

    MNIST_DIR=... make bench-train          # MNIST_DIR: a folder of MNIST's files

The pipeline and its peers run in turn, and every ratio is the median over rounds. Prints a table,
and one line of JSON last.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from pipeline.artifacts.storage import Storage
from pipeline.cluster import connection
from pipeline.config import Data, Preprocess, Train
from pipeline.recipes import RECIPES, Training
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train
from tests.bench import stream
from tests.bench.fit import GOAL

ROUNDS = 5
PAIRS = 9
"""Rounds of the benchmarks that use both cores, whose rates vary more."""
ROWS = 2_000_000
SCRIPT = Path(__file__).with_name("script.py")
PIPELINE = (sys.executable, "-m", "pipeline")
RUNS = {
    "loop": "tutorial: script, its loop, s",
    "script": "tutorial: script, whole, s",
    "ours": "tutorial: ours, whole, s",
    "start": "fast: fit() to first step, s",
    "end": "fast: last step to result, s",
    "goal": f"fast: first step to {GOAL} on val, s",
}


def run_train(root: str, ref: str, training: Training) -> tuple[dict[str, float], ...]:
    """Train from scratch; return the metrics of each epoch."""
    manifest = train(Train(root=root, dataset=ref, train=training, force=True))
    return manifest.metrics


def bench_workers(root: str, ref: str, rounds: int) -> Iterator[dict[str, float]]:
    """Yield images per second of one worker and of two, with 512 images per worker and step."""
    for _ in range(rounds):
        rates = {}
        for workers in (1, 2):
            update = {"batch_size": 512 * workers, "num_workers": workers, "epochs": 12}
            lines = run_train(root, ref, RECIPES["fast"].model_copy(update=update))
            rates[f"workers_{workers}"] = median(line["images_per_s"] for line in lines[2:])
        yield rates


def bench_runs(root: str, ref: str, source: str, rounds: int) -> Iterator[dict[str, float]]:
    """Yield the seconds of the `tutorial` recipe as a process, of the script, and of `fast`."""
    for _ in range(rounds):
        started = time.perf_counter()
        printed = run_command(sys.executable, SCRIPT, source)
        script = time.perf_counter() - started
        started = time.perf_counter()
        # As many threads as the script uses: one per core of the machine.
        threads = ("--train.cpus-per-worker", len(os.sched_getaffinity(0)))
        run_command(
            *PIPELINE, "train", "tutorial", "--root", root, "--dataset", ref, "--force", *threads
        )
        ours = time.perf_counter() - started
        fast = json.loads(
            run_command(sys.executable, "-m", "tests.bench.fit", root, ref).splitlines()[-1]
        )
        yield {"script": script, "loop": float(printed.split()[0]), "ours": ours, **fast}


def bench_stream(root: str, ref: str, rounds: int) -> Iterator[dict[str, dict[str, float]]]:
    for _ in range(rounds):
        yield {
            name: json.loads(
                run_command(sys.executable, "-m", "tests.bench.stream", root, ref, mib)
            )
            for name, mib in (("memory", 4096), ("stream", 128))
        }


def run_command(*args: object) -> str:
    """Run a command; return its stdout."""
    command = [str(arg) for arg in args]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def ratio(rounds: list[dict[str, float]], ours: str, other: str) -> float:
    return median(r[ours] / r[other] for r in rounds)


def main() -> None:
    source = os.environ.get("MNIST_DIR")
    if not source:
        sys.exit("MNIST_DIR is not set: set it to a folder of the four files of MNIST.")
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as root:
        with connection.connected():
            ref = preprocess(Preprocess(root=root, data=Data(source=source))).ref
            workers = list(bench_workers(root, ref, PAIRS))
        steps = json.loads(
            run_command(sys.executable, "-m", "tests.bench.steps", root, ref, ROUNDS)
        )
        large = stream.make(Storage(root), ref, ROWS).ref
        streams = list(bench_stream(root, large, PAIRS))
        runs = list(bench_runs(root, ref, source, ROUNDS))

    rates = {
        name: median(s[name] for s in steps)
        for name in ("ours", "eager", "xla", "xla_scan", "sklearn", "floor")
    }
    figures = {
        "step_vs_eager": ratio(steps, "ours", "eager"),
        "step_vs_xla": ratio(steps, "ours", "xla"),
        "step_vs_xla_scan": ratio(steps, "ours", "xla_scan"),
        "step_vs_floor": ratio(steps, "ours", "floor"),
        "seed_wall_vs_script": ratio(runs, "ours", "script"),
        "time_to_9755_vs_seed_script": ratio(runs, "goal", "loop"),
        "two_workers_vs_one": ratio(workers, "workers_2", "workers_1"),
        "stream_vs_memory": median(s["stream"]["rate"] / s["memory"]["rate"] for s in streams),
        "fit_to_first_step_s": median(r["start"] for r in runs),
        "last_step_to_result_s": median(r["end"] for r in runs),
    }
    table = Table("what", "median", "each round")
    for name in rates:
        row(table, f"steps/s: {name}", (s[name] for s in steps), ".0f")
    for name, what in RUNS.items():
        row(table, what, (r[name] for r in runs), ".2f")
    for number in (1, 2):
        rate = (w[f"workers_{number}"] for w in workers)
        row(table, f"images/s: {number} workers, 512 each", rate, ".0f")
    for name in ("memory", "stream"):
        row(table, f"{ROWS:,} rows, {name}: images/s", (s[name]["rate"] for s in streams), ".0f")
        row(table, f"{ROWS:,} rows, {name}: MiB", (s[name]["peak_mib"] for s in streams), ".0f")
    console.print(table)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def row(table: Table, name: str, values: Iterator[float], form: str) -> None:
    rounds = list(values)
    table.add_row(name, format(median(rounds), form), "  ".join(format(v, form) for v in rounds))


if __name__ == "__main__":
    main()
