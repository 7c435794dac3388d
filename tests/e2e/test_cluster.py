"""A cluster that requires a token: submit jobs and deploy the server, as an operator does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import requests

from pipeline.artifacts.commit import load
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.registry import find_model
from pipeline.artifacts.storage import Storage
from pipeline.data.shards import read_split
from pipeline.models.predictor import Predictor
from tests.support.processes import Command, wait_for

REPOSITORY = Path(__file__).parents[2]
TOKEN = "a-token-of-this-test-and-of-nothing-else"
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A running cluster of one node: the addresses of its job server and GCS, and its storage."""

    address: str
    gcs: str
    serve_port: int
    root: Path
    env: dict[str, str]

    def command(self, *args: object) -> Command:
        return Command(*args, env=self.env)


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    gcs, dashboard, agent, serve_port = free_ports(4)
    root = tmp_path_factory.mktemp("root")
    env = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PIPELINE_ROOT": str(root),
        "PIPELINE_MODEL": "bars/production",
    }
    values = {
        "port": gcs,
        "dashboard-port": dashboard,
        # The Ray of the test session uses the default port.
        "dashboard-agent-listen-port": agent,
        "num-cpus": 2,
        # It holds sockets, whose paths must be short (107 bytes).
        "temp-dir": mkdtemp(),
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    node = Command(BIN / "ray", "start", "--head", "--block", *flags, env=env)
    address = f"http://127.0.0.1:{dashboard}"
    with node.started() as process:
        try:
            wait_for(lambda: accepts_jobs(address))
            yield Head(
                address, f"127.0.0.1:{gcs}", serve_port, root, {**env, "RAY_ADDRESS": address}
            )
        finally:
            process.kill()
            for line in node.running():
                os.kill(int(line.split()[0]), signal.SIGKILL)


def status(url: str, token: str) -> int:
    """Return the HTTP status, or 0 without a connection."""
    try:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(url, headers=headers, timeout=5).status_code
    except requests.ConnectionError:
        return 0


def accepts_jobs(address: str) -> bool:
    """Return whether the cluster runs jobs. Its job server answers before a node can run one."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        job = {"entrypoint": "true"}
        return requests.post(f"{address}/api/jobs/", json=job, headers=headers, timeout=30).ok
    except requests.ConnectionError:
        return False


def submit(head: Head, *args: object) -> subprocess.CompletedProcess[str]:
    return head.command(REPOSITORY / "infra/jobs/submit.sh", *args).run()


def last_job_status(head: Head) -> object:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    jobs = requests.get(f"{head.address}/api/jobs/", headers=headers, timeout=30).json()
    return max(jobs, key=lambda job: job["start_time"])["status"]


def test_the_cluster_rejects_a_wrong_token(head: Head) -> None:
    assert status(f"{head.address}/api/jobs/", "wrong") == 403


def test_a_submitted_run_writes_a_model_that_can_be_deployed(head: Head, source: Path) -> None:
    flags = ("--data.name", "bars", "--data.source", source, "--train.epochs", "30")
    completed = submit(head, "fast", *flags, "--train.num-workers", "2")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "accuracy on test" in completed.stdout + completed.stderr
    assert last_job_status(head) == "SUCCEEDED"
    storage = Storage(str(head.root))
    model = find_model(storage, "bars/production")

    start = ("start", "-a", head.gcs, "--http-host", "127.0.0.1", "--http-port", head.serve_port)
    for args in (start, ("deploy", REPOSITORY / "infra/serve.yaml", "-a", head.address)):
        deployed = head.command(BIN / "serve", *args).run()
        assert deployed.returncode == 0, deployed.stderr
    url = f"http://127.0.0.1:{head.serve_port}/v2/models/bars"
    wait_for(lambda: status(f"{url}/ready", "") == 200)
    dataset = load(storage, f"datasets/{model.dataset}", DatasetManifest)
    images = read_split(storage, dataset, "test").images[:5]
    data = {"datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    body = {"inputs": [{"name": "image", **data}]}
    answer = requests.post(f"{url}/infer", json=body, timeout=30).json()
    expected = Predictor(storage, model).predict(images)
    np.testing.assert_array_equal(answer["outputs"][1]["data"], expected.prediction)
    assert answer["model_version"] == model.version


def test_a_run_that_fails_is_a_failed_job(head: Head) -> None:
    completed = submit(head, "fast", "--data.name", "bars", "--data.source", "/nowhere")
    assert completed.returncode != 0
    assert "error: --data.source '/nowhere' " in completed.stdout + completed.stderr
    assert last_job_status(head) == "FAILED"
