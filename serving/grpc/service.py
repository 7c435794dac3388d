"""The methods of GRPCInferenceService (V2): they convert and delegate, as the HTTP routes do.

Ray Serve's gRPC ingress calls them by their names. Tensors come as raw contents or as typed ones,
and leave as raw contents.
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
"""What Ray Serve is told to serve, in `grpc_servicer_functions`."""

PUBLIC_METHODS = {"ServerLive", "ServerReady"}
"""Methods that need no key."""

Convert: TypeAlias = Callable[["InferenceService", Any], Awaitable[Any]]

Method: TypeAlias = Callable[["InferenceService", Any, RayServegRPCContext], Awaitable[Any]]


def _method(convert: Convert) -> Method:
    """A method that lets in who has a key, and answers a RequestError by its code."""

    @wraps(convert)
    async def call(self: InferenceService, request: Any, grpc_context: RayServegRPCContext) -> Any:
        try:
            if convert.__name__ not in PUBLIC_METHODS:
                self.authenticate(grpc_context)
            return await convert(self, request)
        except RequestError as error:
            self.watcher.current.batcher.statistics.errors[type(error).__name__] += 1
            grpc_context.set_code(grpc.StatusCode[error.grpc_code])
            grpc_context.set_details(str(error))
            raise

    # Ray looks for grpc_context in the signature, and would find that of what is wrapped.
    del call.__wrapped__
    return call


class InferenceService:
    """The methods, for what is served; base of the replica."""

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
        served = self.watcher.find(request.name, request.version)
        return pb.ModelMetadataResponse(**v2_metadata.model_metadata(served.model))

    @_method
    async def ModelInfer(self, request: Any) -> Any:
        served = self.watcher.find(request.model_name, request.model_version)
        model = served.model
        binary = memoryview(b"".join(request.raw_input_contents))
        asked = check_request(
            to_request_body(request), binary, model, max_rows=self.settings.max_request_rows
        )
        predictions = await served.batcher.predict(asked.images)
        reply = pb.ModelInferResponse(
            model_name=model.name, model_version=model.version, id=request.id
        )
        if model.caveat:
            reply.parameters["caveat"].string_param = model.caveat
        for wanted in asked.outputs:
            name, datatype, shape, data = output_tensor(model, wanted, predictions)
            reply.outputs.add(name=name, datatype=datatype, shape=shape)
            reply.raw_output_contents.append(to_bytes(data))
        return reply

    def authenticate(self, context: RayServegRPCContext) -> None:
        """Unauthorized where keys are wanted and the call's metadata has none that is valid."""
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        if self.settings.api_keys and not keys.valid(
            keys.sent_key(headers), self.settings.api_keys
        ):
            raise Unauthorized("This server wants an API key. Send authorization: Bearer KEY.")
