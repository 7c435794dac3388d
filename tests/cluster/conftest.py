"""A cluster of three nodes of one CPU each, for all tests of the folder that leave it whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.testbed import cluster, namespaces
from infra.testbed.cluster import Cluster


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
