"""A cluster of three nodes of one CPU each, for all tests of the folder that leave it whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.testbed import cluster, namespaces
from infra.testbed.cluster import Cluster
from tests.cluster import faults
from tests.support import s3
from tests.support.s3 import S3


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was done to a stage, and what came of it."""
    if faults.COSTS:
        terminalreporter.section("faults")
    for stage, fault, result in faults.COSTS:
        terminalreporter.line(f"{stage:<12}{fault:<48}{result}")


@pytest.fixture(scope="session", autouse=True)
def _needs_namespaces() -> None:
    if reason := namespaces.missing():
        pytest.skip(reason)


@pytest.fixture(scope="package")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster.started(3, cpus=1, shared=tmp_path_factory.mktemp("shared")) as started:
        yield started


@pytest.fixture
def shared(testbed: Cluster, request: pytest.FixtureRequest) -> Path:
    """Return a new folder that all nodes see."""
    folder = Path(testbed.shared, request.node.name)
    folder.mkdir()
    return folder


@pytest.fixture
def bucket(testbed: Cluster) -> Iterator[S3]:
    """Yield a new S3 server at the switch, which this process does not reach."""
    with s3.started_at(testbed.switch) as server:
        yield server
