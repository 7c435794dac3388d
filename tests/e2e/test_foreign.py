"""Clients whose own needs conflict with ours: each runs in the venv that `make test` has made."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.models.predictor import Predictor
from serving import keys
from tests.support.servers import Server, started
from tests.support.stripes_model import STRIPES

REPOSITORY = Path(__file__).parents[2]
KEY = "a key"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    digest = keys.digest(KEY.encode())
    root = str(tmp_path_factory.mktemp("root"))
    with started(root, "--grpc-port", "0", "--api-keys", digest) as server:
        yield server


@pytest.fixture(scope="module")
def expected(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (40, *STRIPES.shape), np.uint8)
    found = Predictor(server.storage, server.model).predict(images)
    path = tmp_path_factory.mktemp("expected") / "expected.npz"
    np.savez(
        path,
        images=images,
        probabilities=found.probabilities,
        prediction=found.prediction,
    )
    return path


@pytest.mark.parametrize("client", ["triton_grpc", "kserve_rest"])
def test_it_gets_what_it_asks_for(server: Server, expected: Path, client: str) -> None:
    address = server.grpc if client.endswith("grpc") else server.url("")
    python = REPOSITORY / f".venv-others/{client.partition('_')[0]}/bin/python"
    script = REPOSITORY / f"tests/clients/{client}.py"
    done = subprocess.run(
        [python, script, address, server.model.version, KEY, expected],
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_openapi_document_holds(server: Server) -> None:
    """schemathesis: each address, with requests that follow the document and that break it."""
    done = subprocess.run(
        [
            REPOSITORY / ".venv-others/schemathesis/bin/schemathesis",
            "run",
            server.url("/openapi.json"),
            "--checks=all",
            "--max-examples=20",
            "--seed=0",
            "--no-color",
            f"--header=Authorization: Bearer {KEY}",
        ],
        timeout=240,
        capture_output=True,
        text=True,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.clients.schema_hooks"},
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout
