"""The gRPC methods, called as Ray Serve calls them: with the bytes of a message and a context."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import open_inference.grpc.protocol as pb
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from pipeline.artifacts.storage import Storage
from serving.config import AppSettings
from serving.grpc.service import HEALTH, PUBLIC_METHODS, REQUESTS, SERVICE, InferenceService
from serving.keys import digest
from serving.model.watcher import ModelWatcher
from tests.support.stripes_model import publish, stripe


class Context:
    """The context of a call, as Ray Serve passes it."""

    def __init__(self, **metadata: str) -> None:
        self._metadata = metadata
        self.code: Any = grpc.StatusCode.OK
        self.details = ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self._metadata.items())

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


@pytest.fixture
def service(tmp_path: Path) -> InferenceService:
    publish(Storage(str(tmp_path)))
    own = InferenceService()
    own.settings = AppSettings(
        root=str(tmp_path), model="stripes/production", api_keys=(digest(b"secret"),)
    )
    own.watcher = ModelWatcher(own.settings)
    return own


def call(service: InferenceService, name: str, request: bytes, context: Context) -> Any:
    return asyncio.run(getattr(service, name)(request, context))


def infer_request(**fields: Any) -> Any:
    request = pb.ModelInferRequest(model_name="stripes", **fields)
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 4, 6])
    request.raw_input_contents.append(stripe(1).tobytes())
    return request


def test_every_method_of_the_protocol_is_listed() -> None:
    assert {name for name in vars(InferenceService) if name[0].isupper()} == set(REQUESTS)


def test_a_request_is_answered(service: InferenceService) -> None:
    context = Context(authorization="Bearer secret")
    reply = call(service, "ModelInfer", infer_request().SerializeToString(), context)
    assert context.code == grpc.StatusCode.OK
    assert np.frombuffer(reply.raw_output_contents[1], np.int64).tolist() == [1]


@pytest.mark.parametrize("name", sorted({*REQUESTS} - PUBLIC_METHODS))
def test_nothing_is_parsed_without_a_key(service: InferenceService, name: str) -> None:
    context = Context()
    reply = call(service, name, b"\xff not a message", context)
    assert context.code == grpc.StatusCode.UNAUTHENTICATED
    assert reply.SerializeToString() == b""


@pytest.mark.parametrize("name", ["", SERVICE, HEALTH])
def test_a_probe_learns_whether_the_server_is_ready(service: InferenceService, name: str) -> None:
    request = HealthCheckRequest(service=name).SerializeToString()
    reply = call(service, "Check", request, Context())
    assert reply.status == HealthCheckResponse.SERVING
    service.watcher._ready = None
    service.watcher.current.predictor.predict = lambda images: None  # type: ignore[assignment, return-value, method-assign]
    reply = call(service, "Check", request, Context())
    assert reply.status == HealthCheckResponse.NOT_SERVING


def test_a_probe_of_another_service_is_not_found(service: InferenceService) -> None:
    context = Context()
    call(service, "Check", HealthCheckRequest(service="other").SerializeToString(), context)
    assert context.code == grpc.StatusCode.NOT_FOUND


def not_a_number() -> bytes:
    request = infer_request()
    request.parameters["x"].double_param = float("nan")
    return bytes(request.SerializeToString())


def many_inputs() -> bytes:
    request = pb.ModelInferRequest(model_name="stripes")
    for _ in range(100_000):
        request.inputs.add()
    return bytes(request.SerializeToString())


@pytest.mark.parametrize(
    ("request_bytes", "details"),
    [
        (b"\xff", "not a ModelInferRequest"),
        (not_a_number(), "Not an infer request: 'parameters.x"),
        (pb.ModelInferRequest(model_name="stripes").SerializeToString(), "Inputs are none"),
        (many_inputs(), "more than 64 inputs"),
    ],
    ids=["bytes", "NaN", "no inputs", "many inputs"],
)
def test_an_invalid_request_is_an_invalid_argument(
    service: InferenceService, request_bytes: bytes, details: str
) -> None:
    context = Context(authorization="Bearer secret")
    call(service, "ModelInfer", request_bytes, context)
    assert context.code == grpc.StatusCode.INVALID_ARGUMENT
    assert details in context.details


def test_a_bug_shows_clients_no_details(
    service: InferenceService, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("/inner/path")

    service.watcher.find = fail  # type: ignore[assignment, method-assign]
    context = Context(authorization="Bearer secret")
    with caplog.at_level(logging.ERROR):
        call(service, "ModelInfer", infer_request().SerializeToString(), context)
    assert context.code == grpc.StatusCode.INTERNAL
    assert "inner" not in context.details
    assert "/inner/path" in caplog.text
