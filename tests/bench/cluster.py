"""Benchmark of two nodes of one core each. Takes 15 minutes and 5 GB of disk.

    MNIST_DIR=... make bench-cluster        # MNIST_DIR: a folder of MNIST's files

The ceiling of two nodes is two runs of one node each, side by side. Both are measured in turn, and
every ratio is the median over rounds. Prints a table, and one line of JSON last.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TypeAlias

import numpy as np
from rich.console import Console
from rich.table import Table

from infra.testbed import cluster
from infra.testbed.cluster import Cluster
from pipeline.artifacts.storage import Storage
from pipeline.cluster import connection
from pipeline.config import Data, Preprocess
from pipeline.data.sources import open_source
from pipeline.stages.preprocess import preprocess
from tests.bench import stream
from tests.bench.cluster_data import MORE_ROWS, ROWS, STAGES, DataBench
from tests.bench.data import generate
from tests.bench.train import PIPELINE, ratio, row

ROUNDS = 3

STREAMED_ROWS = 400_000

Flags: TypeAlias = tuple[object, ...]

Metrics: TypeAlias = list[dict[str, float]]
"""The metrics of each epoch of a run."""

STREAMED: Flags = ("--train.memory-mib", 64)


class Bench:
    """Trains on two nodes of a core each; the head has neither."""

    def __init__(self, testbed: Cluster, root: Path) -> None:
        self._testbed, self._root = testbed, root

    def train(self, ref: str, *flags: object, runs: int = 1) -> list[Metrics]:
        """Train so many runs side by side, from scratch, with the same flags but for the seed."""
        shutil.rmtree(self._root / "runs", ignore_errors=True)
        command = (*PIPELINE, "train", "fast", "--root", self._root, "--dataset", ref, *flags)
        processes = [self._testbed.popen(*command, "--train.seed", seed) for seed in range(runs)]
        if any([process.wait() for process in processes]):
            sys.exit("a run failed")
        logs = [path.read_text() for path in self._root.glob("runs/*/metrics.jsonl")]
        return [[json.loads(line) for line in log.splitlines()] for log in logs]

    def compare(self, ref: str, rows: int, epochs: int, *flags: object) -> dict[str, float]:
        """Return images per second of two workers, and of their ceiling: `rows` each per step."""
        flags = (*flags, "--train.epochs", epochs, "--train.batch-size")
        apart = self.train(ref, *flags, rows, runs=2)
        (together,) = self.train(ref, *flags, 2 * rows, "--train.num-workers", 2)
        bytes_two, bytes_one = (
            sum(line["bytes_read"] for line in run) for run in (together, apart[0])
        )
        return {
            "two": rate(together),
            "ceiling": sum(map(rate, apart)),
            "bytes_two": bytes_two,
            "bytes_one": bytes_one,
        }

    def compare_steps(self, ref: str) -> dict[str, float]:
        """Return images per second of one worker by the step of each name."""
        flags = ("--train.epochs", 10, "--train.batch-size", 512, "--train.step")
        return {step: rate(*self.train(ref, *flags, step)) for step in ("fast", "textbook")}


def rate(run: Metrics) -> float:
    """Return images per second; the first epochs warm up."""
    return median(line["images_per_s"] for line in run[2:])


def main() -> None:
    source = os.environ.get("MNIST_DIR")
    if not source:
        sys.exit("MNIST_DIR is not set: set it to a folder of the four files of MNIST.")
    names = ("two_nodes_512", "two_nodes", "two_nodes_stream")
    data_names = tuple(f"two_nodes_{stage}" for stage in STAGES)
    rounds: dict[str, list[dict[str, float]]] = {
        name: [] for name in (*names, *data_names, "steps")
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cores = sorted(os.sched_getaffinity(0))[:2]
        with connection.connected():
            ref = preprocess(Preprocess(root=folder, data=Data(source=source))).ref
            digits = root / "digits.npy"
            np.save(digits, open_source(Data(source=source)).splits["train"].read(0, 60_000).images)
            for rows in (ROWS, ROWS // 2, MORE_ROWS, MORE_ROWS // 2):
                generate(root / f"source-{rows}", rows, digits)
        large = stream.make(Storage(folder), ref, STREAMED_ROWS).ref
        with cluster.started(1, cpus=0, shared=root) as testbed:
            testbed.cpus = 1
            for core in cores:
                testbed.add_node(core=core)
            bench = Bench(testbed, root)
            for _ in range(ROUNDS):
                rounds["two_nodes_512"].append(bench.compare(ref, 512, 20))
                rounds["two_nodes"].append(bench.compare(ref, 4096, 20))
                rounds["two_nodes_stream"].append(bench.compare(large, 4096, 6, *STREAMED))
                rounds["steps"].append(bench.compare_steps(ref))
            model = root / "model"
            trained = testbed.run(*PIPELINE, "run", "--root", model, "--data.source", source)
            if trained.returncode:
                sys.exit(trained.stderr)
        with ExitStack() as stack:
            data_bench = DataBench(stack, root, model, cores)
            for _ in range(ROUNDS):
                for stage in STAGES:
                    rounds[f"two_nodes_{stage}"].append(data_bench.compare(stage))

    compared = (*names, *data_names)
    figures = {f"{name}_vs_ceiling": ratio(rounds[name], "two", "ceiling") for name in compared}
    for name in data_names:
        further = ratio(rounds[name], "two_further", "ceiling_further")
        figures[f"{name}_further_vs_ceiling"] = further
    figures["rank_bytes_ratio"] = ratio(rounds["two_nodes_stream"], "bytes_two", "bytes_one")
    figures["textbook_vs_fast_step"] = ratio(rounds["steps"], "textbook", "fast")
    table = Table("images/s, rows/s or bytes", "median", "each round")
    for name, measured in rounds.items():
        for what in measured[0]:
            row(table, f"{name}: {what}", (r[what] for r in measured), ",.0f")
    Console(width=100).print(table)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
