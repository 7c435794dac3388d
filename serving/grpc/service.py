"""The methods of GRPCInferenceService (V2) and Health, which Ray Serve's ingress calls by name.

A request's tensors are raw or typed contents; a reply's are always raw contents.

To add a method: write it in InferenceService under the name in the protocol, with `@_method`, and
list it in METHODS.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeAlias

import grpc
import open_inference.grpc.protocol as pb
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from ray.serve.grpc_util import RayServegRPCContext

from serving import keys
from serving.config import AppSettings
from serving.errors import (
    ModelUnknown,
    NotReady,
    RequestError,
    RequestInvalid,
    Unauthorized,
    safe_repr,
)
from serving.grpc.convert import to_request_body
from serving.model.watcher import ModelWatcher
from serving.protocol import v2_metadata
from serving.protocol.v2_request import check_request
from serving.protocol.v2_response import output_tensor, to_bytes

SERVICER = "serving.grpc.service.add_servicer"
"""The entry of Ray Serve's option `grpc_servicer_functions`."""

SERVICE = "inference.GRPCInferenceService"

HEALTH = "grpc.health.v1.Health"

METHODS = {
    SERVICE: {
        "ServerLive": pb.ServerLiveRequest,
        "ServerReady": pb.ServerReadyRequest,
        "ServerMetadata": pb.ServerMetadataRequest,
        "ModelReady": pb.ModelReadyRequest,
        "ModelMetadata": pb.ModelMetadataRequest,
        "ModelInfer": pb.ModelInferRequest,
    },
    HEALTH: {"Check": HealthCheckRequest},
}
"""The requests of the methods of each service."""

REQUESTS = {name: request for methods in METHODS.values() for name, request in methods.items()}

PUBLIC_METHODS = {"ServerLive", "ServerReady", "Check"}
"""Methods that need no API key."""

Handler: TypeAlias = Callable[["InferenceService", Any], Awaitable[Any]]

Method: TypeAlias = Callable[["InferenceService", bytes, RayServegRPCContext], Awaitable[Any]]


def add_servicer(servicer: Any, server: grpc.Server) -> None:
    """Add the services to a server, without parsing of requests: a method does that itself.

    So nothing is parsed of a call without a valid API key.
    """
    for service, methods in METHODS.items():
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in methods
        }
        handler = grpc.method_handlers_generic_handler(service, handlers)
        server.add_generic_rpc_handlers((handler,))


def _method(handler: Handler) -> Method:
    """Return a gRPC method that authenticates, parses the request, and answers errors by a code.

    It returns an empty message with the code. If it raised, Ray would log each refusal.
    """
    request_type = REQUESTS[handler.__name__]

    @wraps(handler)
    async def method(
        self: InferenceService, request: bytes, grpc_context: RayServegRPCContext
    ) -> Any:
        try:
            if handler.__name__ not in PUBLIC_METHODS:
                self._authenticate(grpc_context)
            return await handler(self, _parse(request_type, request))
        except RequestError as error:
            self.watcher.current.batcher.statistics.errors[type(error).__name__] += 1
            code, message = grpc.StatusCode[error.grpc_code], str(error)
        except Exception:
            logging.getLogger(__name__).exception("a gRPC request failed")
            code = grpc.StatusCode.INTERNAL
            message = "The server failed on this request. Its log says why."
        grpc_context.set_code(code)
        grpc_context.set_details(message)
        return pb.ServerLiveResponse()

    # Ray passes grpc_context if the signature has it; inspect would follow __wrapped__ to the
    # handler's signature, which lacks it.
    del method.__wrapped__
    return method


def _parse(request_type: Any, request: bytes) -> Any:
    try:
        return request_type.FromString(request)
    except DecodeError:
        raise RequestInvalid(f"The message is not a {request_type.__name__}.") from None


class InferenceService:
    """The methods, over the model that the watcher holds; base class of the replica."""

    watcher: ModelWatcher
    settings: AppSettings

    @_method
    async def ServerLive(self, request: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    @_method
    async def ServerReady(self, request: Any) -> Any:
        self.watcher.require_ready()
        return pb.ServerReadyResponse(ready=True)

    @_method
    async def Check(self, request: Any) -> Any:
        if request.service not in ("", *METHODS):
            raise ModelUnknown(f"The server has no service {safe_repr(request.service)}.")
        try:
            self.watcher.require_ready()
        except NotReady:
            return HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
        return HealthCheckResponse(status=HealthCheckResponse.SERVING)

    @_method
    async def ServerMetadata(self, request: Any) -> Any:
        return pb.ServerMetadataResponse(**v2_metadata.SERVER)  # type: ignore[arg-type]

    @_method
    async def ModelReady(self, request: Any) -> Any:
        self.watcher.find(request.name, request.version)
        self.watcher.require_ready()
        return pb.ModelReadyResponse(ready=True)

    @_method
    async def ModelMetadata(self, request: Any) -> Any:
        model = self.watcher.find(request.name, request.version).model
        versions = [loaded.model for loaded in self.watcher.loaded]
        return pb.ModelMetadataResponse(**v2_metadata.model_metadata(model, versions))

    @_method
    async def ModelInfer(self, request: Any) -> Any:
        loaded = self.watcher.find(request.model_name, request.model_version)
        model = loaded.model
        binary = memoryview(b"".join(request.raw_input_contents))
        infer_request = check_request(
            to_request_body(request), binary, model, max_rows=self.settings.max_request_rows
        )
        predictions = await loaded.batcher.predict(infer_request.images)
        reply = pb.ModelInferResponse(
            model_name=model.name, model_version=model.version, id=request.id
        )
        if model.caveat:
            reply.parameters["caveat"].string_param = model.caveat
        for requested in infer_request.outputs:
            name, datatype, shape, data = output_tensor(model, requested, predictions)
            reply.outputs.add(name=name, datatype=datatype, shape=shape)
            reply.raw_output_contents.append(to_bytes(data))
        return reply

    def _authenticate(self, context: RayServegRPCContext) -> None:
        """Raise Unauthorized if keys are required and the call's metadata has no valid one."""
        if not self.settings.api_keys:
            return
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        if not keys.valid(keys.sent_key(headers), self.settings.api_keys):
            raise Unauthorized("This server requires an API key. Send authorization: Bearer KEY.")
