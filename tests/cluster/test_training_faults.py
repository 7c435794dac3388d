"""Faults of workers, nodes and cables during a run on two nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from infra.testbed.cluster import Cluster
from infra.testbed.namespaces import Node
from tests.cluster.faults import apart, caused, fill_disk, note, slow
from tests.support.processes import wait_for
from tests.support.sample_data import write_source

pytestmark = pytest.mark.cluster

SETTINGS = ("--train.epochs", 30, "--train.batch-size", 2, "--train.checkpoint-steps", 1)
"""Settings of a run of about 25 s; an epoch takes most of a second."""

PIPELINE = (sys.executable, "-m", "pipeline")


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with apart(3, tmp_path_factory.mktemp("shared")) as started:
        yield started


@pytest.fixture(scope="module")
def datasets(testbed: Cluster) -> Path:
    """Return a storage root that holds only a dataset."""
    source, root = write_source(testbed.shared / "source"), testbed.shared / "datasets"
    flags = ("--data.name", "bars", "--data.source", source, "--root", root)
    done = testbed.run(*PIPELINE, "preprocess", *flags)
    assert not done.returncode, done.stderr
    return root


@dataclass(frozen=True)
class Run:
    """A run in progress on the testbed."""

    testbed: Cluster
    root: Path
    process: subprocess.Popen[str]

    def nodes(self) -> list[Node]:
        """Return the nodes with a worker."""
        return [node for node in self.testbed.switch.nodes if has_worker(node)]

    def metrics(self) -> list[dict[str, float]]:
        logs = (path.read_text() for path in self.root.glob("runs/*/metrics.jsonl"))
        return [json.loads(line) for log in logs for line in log.splitlines()]

    def end(self) -> tuple[int, str, float]:
        """Return the exit status, what was printed, and the seconds lost from now on.

        Those are the seconds without what as many epochs take that are not disturbed.
        """
        seen, ends = len(self.metrics()), [time.monotonic()]

        def has_ended() -> bool:
            nonlocal seen
            new = len(self.metrics()) - seen
            if new > 0:
                seen += new
                ends.extend(new * [time.monotonic()])
            return self.process.poll() is not None

        wait_for(has_ended, timeout_s=240)
        gaps = [end - start for start, end in pairwise(ends)] or [0.0]
        _, printed = self.process.communicate()
        return self.process.returncode, printed, sum(gaps) - len(gaps) * median(gaps)

    def checkpoint(self) -> Any:
        """Return the path and digest of the checkpoint of the finished run."""
        (manifest,) = self.root.glob("runs/*/manifest.json")
        files = json.loads(manifest.read_text())["files"]
        return [file for file in files if file["path"].startswith("checkpoints/")]


def has_worker(node: Node) -> bool:
    return node.run("pgrep", "-f", "RayTrainWorker").returncode == 0


@contextmanager
def run(testbed: Cluster, datasets: Path, name: str, workers: int) -> Iterator[Run]:
    """Start a run with a storage root of its own, and kill it at the end of the block."""
    root = testbed.shared / name
    shutil.copytree(datasets, root)
    (dataset,) = (path.relative_to(root / "datasets") for path in root.glob("datasets/*/*"))
    flags = ("--root", root, "--dataset", dataset, "--train.num-workers", workers, *SETTINGS)
    with testbed.popen(*PIPELINE, "train", "fast", *flags, stderr=subprocess.PIPE) as process:
        try:
            yield Run(testbed, root, process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def checkpoint(testbed: Cluster, datasets: Path) -> Any:
    """Return the checkpoint of a run without a fault."""
    with run(testbed, datasets, "undisturbed", workers=2) as undisturbed:
        status, printed, _ = undisturbed.end()
        assert status == 0, printed
        return undisturbed.checkpoint()


def kill_worker(node: Node) -> None:
    node.run("pkill", "-KILL", "-f", "RayTrainWorker")


def wait_for_moment(run: Run, moment: str) -> Node:
    """Wait for the end of an early epoch, or the middle of the next; return a worker's node."""
    wait_for(run.metrics)
    node, seen = run.nodes()[-1], len(run.metrics())
    wait_for(lambda: len(run.metrics()) > seen)
    if moment == "within an epoch":
        time.sleep(500 / run.metrics()[-1]["images_per_s"] / 2)
    return node


@pytest.mark.parametrize("moment", ["within an epoch", "between epochs"])
@pytest.mark.parametrize("fault", [kill_worker, Node.kill, Node.cut, slow, fill_disk])
def test_a_run_ends_with_the_same_bits_after_a_fault(
    testbed: Cluster,
    datasets: Path,
    checkpoint: Any,
    fault: Callable[[Node], None],
    moment: str,
) -> None:
    """With a spare node, which takes the place of one that is lost."""
    name = f"{fault.__name__} {moment}".replace(" ", "-")
    with run(testbed, datasets, name, workers=2) as disturbed:
        node = wait_for_moment(disturbed, moment)
        with caused(testbed, fault, node):
            status, printed, lost = disturbed.end()
        assert status == 0, printed
        assert disturbed.checkpoint() == checkpoint
        note("train", f"{fault.__name__} {moment}", f"same bits, {lost:.0f} s lost")


@pytest.mark.parametrize("fault", [Node.kill, Node.cut])
def test_a_run_ends_with_one_line_if_no_node_replaces_one_that_is_lost(
    testbed: Cluster, datasets: Path, fault: Callable[[Node], None]
) -> None:
    with run(testbed, datasets, f"{fault.__name__}-without-spare", workers=3) as disturbed:
        node = wait_for_moment(disturbed, "within an epoch")
        with caused(testbed, fault, node):
            started = time.monotonic()
            status, printed, _ = disturbed.end()
        seconds = time.monotonic() - started
        note("train", f"{fault.__name__}, no other node", f"one line after {seconds:.0f} s")
        assert status == 2
        assert "Traceback" not in printed
