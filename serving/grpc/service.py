"""The methods of GRPCInferenceService (V2), which Ray Serve's gRPC ingress calls by name.

A request's tensors are raw or typed contents; a reply's are always raw contents.

To add a method: write it in InferenceService under the name in the protocol, with `@_method`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeAlias

import grpc
import open_inference.grpc.protocol as pb
from ray.serve.grpc_util import RayServegRPCContext

from serving import keys
from serving.config import AppSettings
from serving.errors import RequestError, Unauthorized
from serving.grpc.convert import to_request_body
from serving.model.watcher import ModelWatcher
from serving.protocol import v2_metadata
from serving.protocol.v2_request import check_request
from serving.protocol.v2_response import output_tensor, to_bytes

SERVICER = "open_inference.grpc.service.add_GRPCInferenceServiceServicer_to_server"
"""The entry of Ray Serve's option `grpc_servicer_functions`."""

PUBLIC_METHODS = {"ServerLive", "ServerReady"}
"""Methods that need no API key."""

Handler: TypeAlias = Callable[["InferenceService", Any], Awaitable[Any]]

Method: TypeAlias = Callable[["InferenceService", Any, RayServegRPCContext], Awaitable[Any]]


def _method(handler: Handler) -> Method:
    """Return a gRPC method that authenticates, and answers a RequestError by its gRPC code."""

    @wraps(handler)
    async def method(
        self: InferenceService, request: Any, grpc_context: RayServegRPCContext
    ) -> Any:
        try:
            if handler.__name__ not in PUBLIC_METHODS:
                self._authenticate(grpc_context)
            return await handler(self, request)
        except RequestError as error:
            self.watcher.current.batcher.statistics.errors[type(error).__name__] += 1
            grpc_context.set_code(grpc.StatusCode[error.grpc_code])
            grpc_context.set_details(str(error))
            raise

    # Ray passes grpc_context if the signature has it; inspect would follow __wrapped__ to the
    # handler's signature, which lacks it.
    del method.__wrapped__
    return method


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
