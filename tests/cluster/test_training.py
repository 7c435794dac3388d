"""Training on several nodes: without settings by hand, with the result of one node."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from infra.testbed.cluster import Cluster
from tests.support.s3 import S3
from tests.support.sample_data import write_source

pytestmark = pytest.mark.cluster

READ_METRICS = """
import sys
from pipeline.artifacts.storage import Storage
storage = Storage(sys.argv[1])
(path,) = [path for path in storage.files("runs") if path.endswith("metrics.jsonl")]
print(storage.read(path).decode())
"""


def train(testbed: Cluster, source: Path, root: object, workers: int) -> list[dict[str, float]]:
    """Train on so many nodes, and return the metrics of the epochs."""
    flags = ("--data.name", "bars", "--data.source", source, "--root", root)
    done = testbed.run(
        *(sys.executable, "-m", "pipeline", "run", "fast", *flags),
        *("--train.num-workers", workers, "--train.epochs", 3, "--train.batch-size", 20),
    )
    assert not done.returncode, done.stderr
    metrics = testbed.run(sys.executable, "-c", READ_METRICS, root)
    assert not metrics.returncode, metrics.stderr
    return [json.loads(line) for line in metrics.stdout.splitlines() if line]


@pytest.mark.parametrize("storage", ["a shared folder", "S3"])
def test_workers_on_two_nodes_train_as_one_does(
    testbed: Cluster, shared: Path, bucket: S3, storage: str
) -> None:
    source = write_source(shared / "source")
    roots = [bucket.uri(n) if storage == "S3" else shared / n for n in ("one", "two")]
    one, two = (train(testbed, source, root, n) for n, root in enumerate(roots, 1))
    assert [line["num_workers"] for line in two] == [2, 2, 2]
    for line, other in zip(one, two, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert line["val_accuracy"] == pytest.approx(other["val_accuracy"], abs=0.02)
