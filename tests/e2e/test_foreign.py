"""Clients whose requirements conflict with ours: each runs in its own venv, made by `make test`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

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
    predictions = Predictor(server.storage, server.model).predict(images)
    path = tmp_path_factory.mktemp("expected") / "expected.npz"
    np.savez(
        path,
        images=images,
        probabilities=predictions.probabilities,
        prediction=predictions.prediction,
    )
    return path


@pytest.mark.parametrize("client", ["triton_grpc", "kserve_rest"])
def test_a_foreign_client_gets_the_expected_predictions(
    server: Server, expected: Path, client: str
) -> None:
    address = server.grpc if client.endswith("grpc") else server.url("")
    python = REPOSITORY / f".venv-others/{client.partition('_')[0]}/bin/python"
    script = REPOSITORY / f"tests/clients/{client}.py"
    process = subprocess.run(
        [python, script, address, server.model.version, KEY, expected],
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


def test_a_probe_asks_whether_grpc_is_healthy(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        reply = HealthStub(channel).Check(HealthCheckRequest(), timeout=10)
    assert reply.status == HealthCheckResponse.SERVING


def test_a_grpc_message_has_the_bound_of_a_body(server: Server) -> None:
    """Send more than it without a key: the message is not even received."""
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            infer(bytes(17 << 20), timeout=20)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_server_matches_its_openapi_document(server: Server) -> None:
    """Let schemathesis send requests that follow the document, and requests that break it."""
    process = subprocess.run(
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
    assert process.returncode == 0, process.stdout
