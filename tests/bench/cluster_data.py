"""The part of the benchmark of two nodes that preprocesses and scores digits.

The ceiling is two clusters of one node, side by side, each with half of the rows. The time of a
stage is the one in its figures. Most of that for ROWS is the start of the stage, which is the same
for any number of nodes, so the rate of further rows, up to MORE_ROWS, is measured as well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from infra.testbed import cluster
from infra.testbed.cluster import Cluster
from pipeline.data.catalog import ROLES
from tests.bench.train import PIPELINE

ROWS, MORE_ROWS = 1_000_000, 3_000_000

STAGES = ("preprocess", "score")


class DataBench:
    """Runs stages on a cluster of two nodes, and on two clusters of one node, of a core each."""

    def __init__(self, stack: ExitStack, root: Path, model: Path, cores: Sequence[int]) -> None:
        self._root, self._model = root, model
        self._two, *self._ones = (
            _start(stack, root, own) for own in (cores, *([core] for core in cores))
        )

    def compare(self, stage: str) -> dict[str, float]:
        """Return rows per second of two nodes and of their ceiling, of ROWS and of further ones."""
        speeds = dict[str, float]()
        for name, clusters in (("two", [self._two]), ("ceiling", self._ones)):
            rows, more = (number // len(clusters) for number in (ROWS, MORE_ROWS))
            times = self._seconds(stage, clusters, rows)
            longer = self._seconds(stage, clusters, more)
            speeds[name] = sum(rows / seconds for seconds in times)
            speeds[f"{name}_further"] = sum(
                (more - rows) / (long - short) for short, long in zip(times, longer, strict=True)
            )
        return speeds

    def _seconds(self, stage: str, clusters: Sequence[Cluster], rows: int) -> list[float]:
        """Return the duration of a stage on each of the clusters, at the same time."""
        outputs = [self._root / f"output-{number}" for number in range(len(clusters))]
        source = self._root / f"source-{rows}"
        processes = [
            testbed.popen(*_command(stage, source, output, self._model))
            for testbed, output in zip(clusters, outputs, strict=True)
        ]
        if any([process.wait() for process in processes]):
            raise SystemExit(f"{stage} failed")
        times = list[float]()
        for output in outputs:
            (figures,) = output.rglob(f"{stage}.figures.json")
            times.append(json.loads(figures.read_text())["seconds"])
            shutil.rmtree(output)
        return times


def _start(stack: ExitStack, root: Path, cores: Sequence[int]) -> Cluster:
    testbed = stack.enter_context(cluster.started(1, cpus=0, shared=root))
    testbed.cpus = 1
    for core in cores:
        testbed.add_node(core=core)
    return testbed


def _command(stage: str, source: Path, output: Path, model: Path) -> tuple[object, ...]:
    flags: tuple[object, ...]
    if stage == "preprocess":
        flags = ("--data.name", "digits", "--data.source", source, "--root", output)
    else:
        flags = ("--input", source / ROLES["train_images"], "--output", output, "--root", model)
    return (*PIPELINE, stage, *flags)
