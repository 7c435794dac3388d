"""Training against its peers: plain PyTorch, JAX, scikit-learn. Takes about 20 minutes.

    make bench-train          # with MNIST_DIR, a folder of MNIST's files

Ours and the peers run in turn, and every ratio is the median over rounds. Prints a table, and one
line of JSON last.
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
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline import cluster
from pipeline import train as driver
from pipeline.config import RECIPES, Data, Preprocess, Train, Training
from pipeline.preprocess import preprocess
from pipeline.storage import Storage
from pipeline.worker import Worker, train_worker
from tests.bench import stream

ROUNDS = 5
ROWS = 2_000_000
GOAL = 0.9755
SCRIPT = Path(__file__).with_name("script.py")
PIPELINE = (sys.executable, "-m", "pipeline")


def timed_worker(config: dict[str, Any]) -> dict[str, Any]:
    """`train_worker`, which also notes when its first step began and when each epoch ended."""
    times = list[float]()
    train_on, run_epoch = Worker._train_on, Worker.run_epoch

    def first(worker: Worker, *block: Any) -> Any:
        times[:] = times or [time.time()]
        return train_on(worker, *block)

    def each(worker: Worker) -> dict[str, float]:
        line = run_epoch(worker)
        times.append(time.time())
        return line

    Worker._train_on, Worker.run_epoch = first, each  # type: ignore[assignment,method-assign]
    result = train_worker(config)
    Worker._train_on, Worker.run_epoch = train_on, run_epoch  # type: ignore[method-assign]
    return {**result, "times": times}


class TimedTrainer(driver.Trainer):
    """Notes when `fit` began and ended, and what its worker noted."""

    noted: dict[str, Any]

    def fit(self) -> Any:
        started = time.time()
        result = super().fit()
        value = result.return_value  # type: ignore[attr-defined]
        TimedTrainer.noted = {"fit": started, "end": time.time(), "times": value.pop("times")}
        return result


def run_train(root: str, ref: str, training: Training) -> tuple[dict[str, float], ...]:
    """The metrics of a run that is made anew."""
    manifest = driver.train(Train(root=root, dataset=ref, train=training, force=True))
    return manifest.metrics


def bench_fit(root: str, ref: str, rounds: int) -> Iterator[dict[str, float]]:
    """The start and the end of `fast`, and its time to the goal."""
    for _ in range(rounds):
        metrics = run_train(root, ref, RECIPES["fast"])
        noted = TimedTrainer.noted
        first, *ends = noted["times"]
        reached = (end for end, m in zip(ends, metrics, strict=True) if m["val_accuracy"] >= GOAL)
        yield {
            "start": first - noted["fit"],
            "end": noted["end"] - ends[-1],
            "goal": next(reached) - first,
        }


def bench_workers(root: str, ref: str, rounds: int) -> Iterator[dict[str, float]]:
    """Images a second of one worker and of two, 512 images a worker and step."""
    for _ in range(rounds):
        rates = {}
        for workers in (1, 2):
            update = {"batch_size": 512 * workers, "num_workers": workers, "epochs": 12}
            lines = run_train(root, ref, RECIPES["fast"].model_copy(update=update))
            rates[f"workers_{workers}"] = median(line["images_per_s"] for line in lines[2:])
        yield rates


def bench_seed(root: str, ref: str, source: str, rounds: int) -> Iterator[dict[str, float]]:
    """The whole recipe `seed`, from the start of the process to its end, and the script's."""
    for _ in range(rounds):
        started = time.perf_counter()
        printed = call(sys.executable, SCRIPT, source)
        script = time.perf_counter() - started
        started = time.perf_counter()
        call(*PIPELINE, "train", "seed", "--root", root, "--dataset", ref, "--force")
        ours = time.perf_counter() - started
        yield {"script": script, "loop": float(printed.split()[0]), "ours": ours}


def bench_stream(root: str, ref: str, rounds: int) -> Iterator[dict[str, dict[str, float]]]:
    for _ in range(rounds):
        yield {
            name: json.loads(call(sys.executable, "-m", "tests.bench.stream", root, ref, mib))
            for name, mib in (("memory", 4096), ("stream", 128))
        }


def call(*args: object) -> str:
    """What a command prints on stdout."""
    command = [str(arg) for arg in args]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def ratio(rounds: list[dict[str, float]], ours: str, other: str) -> float:
    return median(r[ours] / r[other] for r in rounds)


def main() -> None:
    rounds = int(os.environ.get("BENCH_ROUNDS", ROUNDS))
    source = os.environ.get("MNIST_DIR")
    if not source:
        sys.exit("MNIST_DIR is not set: give a folder of the four files of MNIST.")
    driver.train_worker, driver.Trainer = timed_worker, TimedTrainer  # type: ignore[attr-defined,misc]
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as root:
        with cluster.connected():
            ref = preprocess(Preprocess(root=root, data=Data(source=source))).ref
            fits = list(bench_fit(root, ref, rounds))
            workers = list(bench_workers(root, ref, rounds))
        steps = json.loads(call(sys.executable, "-m", "tests.bench.steps", root, ref, rounds))
        large = stream.make(Storage(root), ref, ROWS).ref
        streams = list(bench_stream(root, large, rounds))
        seeds = list(bench_seed(root, ref, source, rounds))

    rates = {
        name: median(s[name] for s in steps)
        for name in ("ours", "eager", "xla", "xla_scan", "sklearn", "floor")
    }
    loop_s = median(s["loop"] for s in seeds)
    figures = {
        "step_vs_eager": ratio(steps, "ours", "eager"),
        "step_vs_xla": ratio(steps, "ours", "xla"),
        "step_vs_xla_scan": ratio(steps, "ours", "xla_scan"),
        "step_vs_floor": ratio(steps, "ours", "floor"),
        "seed_wall_vs_script": ratio(seeds, "ours", "script"),
        "time_to_9755_vs_seed_script": median(f["goal"] for f in fits) / loop_s,
        "two_workers_vs_one": ratio(workers, "workers_2", "workers_1"),
        "stream_vs_memory": median(s["stream"]["rate"] / s["memory"]["rate"] for s in streams),
        "fit_to_first_step_s": median(f["start"] for f in fits),
        "last_step_to_result_s": median(f["end"] for f in fits),
    }
    table = Table("what", "median", "each round")
    for name in rates:
        row(table, f"steps/s: {name}", (s[name] for s in steps), ".0f")
    row(table, "fast: fit to first step, s", (f["start"] for f in fits), ".2f")
    row(table, "fast: last epoch to result, s", (f["end"] for f in fits), ".2f")
    row(table, f"fast: first step to {GOAL} on val, s", (f["goal"] for f in fits), ".2f")
    row(table, "seed: script, its loop, s", (s["loop"] for s in seeds), ".1f")
    row(table, "seed: script, whole, s", (s["script"] for s in seeds), ".1f")
    row(table, "seed: ours, whole, s", (s["ours"] for s in seeds), ".1f")
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
