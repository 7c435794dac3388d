"""Training on several nodes: without settings by hand, with the result of one node."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from infra.testbed.cluster import Cluster
from tests.support.sample_data import write_source

pytestmark = pytest.mark.cluster


def train(testbed: Cluster, root: Path, workers: int) -> list[dict[str, float]]:
    """Train on so many nodes, and return the metrics of the epochs."""
    source = write_source(root / "source")
    flags = ("--data.name", "bars", "--data.source", source, "--root", root / "root")
    done = testbed.run(
        *(sys.executable, "-m", "pipeline", "run", "fast", *flags),
        *("--train.num-workers", workers, "--train.epochs", 3, "--train.batch-size", 20),
    )
    assert not done.returncode, done.stderr
    (metrics,) = (root / "root").rglob("metrics.jsonl")
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_workers_on_two_nodes_train_as_one_does(testbed: Cluster, shared: Path) -> None:
    one, two = (train(testbed, shared / str(workers), workers) for workers in (1, 2))
    assert [line["num_workers"] for line in two] == [2, 2, 2]
    for line, other in zip(one, two, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert line["val_accuracy"] == pytest.approx(other["val_accuracy"], abs=0.02)
