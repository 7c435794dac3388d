"""Faults of nodes while `preprocess` and `score` run on them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.testbed.cluster import Cluster
from infra.testbed.namespaces import Node
from pipeline.data.catalog import ROLES
from pipeline.data.readers import idx_format
from tests.cluster.faults import apart, caused, fill_disk, note, slow
from tests.support.processes import wait_for
from tests.support.sample_data import HEIGHT, WIDTH, write_source

pytestmark = pytest.mark.cluster

PIPELINE = (sys.executable, "-m", "pipeline")

ROWS, ROWS_PER_SHARD = 60_000, 50

FAULTS = [Node.kill, Node.cut, slow, fill_disk]


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with apart(2, tmp_path_factory.mktemp("shared")) as started:
        yield started


@pytest.fixture(scope="module")
def source(testbed: Cluster) -> Path:
    """Return a source with many images, no two of them equal."""
    folder = write_source(testbed.shared / "source")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (ROWS, HEIGHT, WIDTH), np.uint8)
    labels = random.integers(0, 3, ROWS).astype(np.uint8)
    (folder / ROLES["train_images"]).write_bytes(idx_format.encode(images))
    (folder / ROLES["train_labels"]).write_bytes(idx_format.encode(labels))
    return folder


@pytest.fixture(scope="module")
def model(testbed: Cluster) -> Path:
    """Return a storage root that holds a model `bars/production`."""
    root, source = testbed.shared / "models", write_source(testbed.shared / "small")
    flags = ("--data.name", "bars", "--data.source", source, "--root", root)
    done = testbed.run(*PIPELINE, "run", "fast", *flags, "--train.epochs", 8)
    assert not done.returncode, done.stderr
    return root


def command(stage: str, folder: Path, source: Path, model: Path) -> tuple[object, ...]:
    """Return the command of a stage that writes many shards into a folder."""
    flags: tuple[object, ...]
    if stage == "preprocess":
        flags = ("--data.name", "bars", "--data.source", source, "--root", folder)
        return (*PIPELINE, stage, *flags, "--data.rows-per-shard", ROWS_PER_SHARD)
    flags = ("--input", source / ROLES["train_images"], "--output", folder, "--root", model)
    return (
        *PIPELINE,
        stage,
        *flags,
        "--model",
        "bars/production",
        "--rows-per-shard",
        ROWS_PER_SHARD,
    )


def written(folder: Path) -> dict[Path, int]:
    """Return when each shard was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*part-*.parquet")}


def files(folder: Path) -> Any:
    """Return the files of the finished artifact, with their digests."""
    (manifest,) = folder.rglob("manifest.json")
    return json.loads(manifest.read_text())["files"]


@pytest.fixture(scope="module", params=["preprocess", "score"])
def undisturbed(
    testbed: Cluster, source: Path, model: Path, request: pytest.FixtureRequest
) -> tuple[str, Any, float]:
    """Return a stage, the files that it writes without a fault, and the seconds it takes."""
    stage, started = request.param, time.monotonic()
    folder = testbed.shared / f"{stage}-undisturbed"
    done = testbed.run(*command(stage, folder, source, model))
    assert not done.returncode, done.stderr
    return stage, files(folder), time.monotonic() - started


@pytest.mark.parametrize("fault", FAULTS)
def test_a_stage_ends_with_the_same_files_after_a_fault_of_a_node(
    testbed: Cluster,
    source: Path,
    model: Path,
    undisturbed: tuple[str, Any, float],
    fault: Callable[[Node], None],
) -> None:
    stage, expected, usual_s = undisturbed
    folder = testbed.shared / f"{stage}-{fault.__name__}"
    started = time.monotonic()
    with testbed.popen(*command(stage, folder, source, model), stderr=subprocess.PIPE) as process:
        wait_for(lambda: len(written(folder)) > len(expected) / 3)
        node, before = testbed.switch.nodes[-1], written(folder)
        with caused(testbed, fault, node):
            try:
                _, printed = process.communicate(timeout=300)
            finally:
                process.kill()
        assert process.returncode == 0, printed
    lost_s = time.monotonic() - started - usual_s
    assert files(folder) == expected
    # Only tasks of that node are done again: about half of them ran there.
    after = written(folder)
    repeated = sum(after[path] != time_ns for path, time_ns in before.items())
    assert repeated < 0.7 * len(before)
    result = f"same files, {lost_s:.0f} s lost, {repeated} of {len(before)} shards written again"
    note(stage, fault.__name__, result)
