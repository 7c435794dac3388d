"""Storage roots of every kind: a folder, and buckets of local servers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.artifacts.storage import Storage
from tests.support import gcs, s3
from tests.support.gcs import GCS
from tests.support.s3 import S3


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    if not s3.PROGRAM.exists():
        pytest.skip("the S3 server is not installed: run make .venv-others/moto/ready")
    with s3.started() as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GCS]:
    with gcs.started() as server:
        yield server


@pytest.fixture(params=["a folder", "S3", "Google"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Return an empty root, whose name has brackets."""
    if request.param == "a folder":
        return Storage(str(tmp_path / "a [root]"))
    name = "s3_server" if request.param == "S3" else "gcs_server"
    server: S3 | GCS = request.getfixturevalue(name)
    return Storage(server.uri(f"{uuid.uuid4()}/a [root]"))
