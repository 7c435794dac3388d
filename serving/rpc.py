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

from serving import errors, keys, protocol
from serving.errors import RequestError, Unauthorized
from serving.following import Following
from serving.replies import tensor, to_bytes
from serving.requests import Input, Request, WantedOutput, check
from serving.settings import AppSettings

SERVICER = "open_inference.grpc.service.add_GRPCInferenceServiceServicer_to_server"
"""What Ray Serve is told to serve, in `grpc_servicer_functions`."""

OPEN = {"ServerLive", "ServerReady"}
"""Methods that need no key."""

CODES: dict[type[RequestError], grpc.StatusCode] = {
    errors.RequestInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
    errors.ModelUnknown: grpc.StatusCode.NOT_FOUND,
    errors.PayloadTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.UNAVAILABLE,
}


Convert: TypeAlias = Callable[["Rpc", Any], Awaitable[Any]]
Method: TypeAlias = Callable[["Rpc", Any, RayServegRPCContext], Awaitable[Any]]


def _method(convert: Convert) -> Method:
    """A method that lets in who has a key, and answers a RequestError by its code."""

    @wraps(convert)
    async def call(self: Rpc, request: Any, grpc_context: RayServegRPCContext) -> Any:
        try:
            if convert.__name__ not in OPEN:
                self.admit(grpc_context)
            return await convert(self, request)
        except RequestError as error:
            self.following.served.batcher.statistics.errors[type(error).__name__] += 1
            grpc_context.set_code(CODES[type(error)])
            grpc_context.set_details(str(error))
            raise

    # Ray looks for grpc_context in the signature, and would find that of what is wrapped.
    del call.__wrapped__
    return call


class Rpc:
    """The methods, for what is served; base of the replica."""

    following: Following
    settings: AppSettings

    @_method
    async def ServerLive(self, request: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    @_method
    async def ServerReady(self, request: Any) -> Any:
        self.following.require_ready()
        return pb.ServerReadyResponse(ready=True)

    @_method
    async def ServerMetadata(self, request: Any) -> Any:
        return pb.ServerMetadataResponse(**protocol.SERVER)  # type: ignore[arg-type]

    @_method
    async def ModelReady(self, request: Any) -> Any:
        self.following.find(request.name, request.version)
        self.following.require_ready()
        return pb.ModelReadyResponse(ready=True)

    @_method
    async def ModelMetadata(self, request: Any) -> Any:
        served = self.following.find(request.name, request.version)
        return pb.ModelMetadataResponse(**protocol.model_metadata(served.model))

    @_method
    async def ModelInfer(self, request: Any) -> Any:
        served = self.following.find(request.model_name, request.model_version)
        model = served.model
        binary = memoryview(b"".join(request.raw_input_contents))
        asked = check(_request(request), binary, model, max_rows=self.settings.max_request_rows)
        predictions = await served.batcher.predict(asked.images)
        reply = pb.ModelInferResponse(
            model_name=model.name, model_version=model.version, id=request.id
        )
        if model.caveat:
            reply.parameters["caveat"].string_param = model.caveat
        for wanted in asked.outputs:
            name, datatype, shape, data = tensor(model, wanted, predictions)
            reply.outputs.add(name=name, datatype=datatype, shape=shape)
            reply.raw_output_contents.append(to_bytes(data))
        return reply

    def admit(self, context: RayServegRPCContext) -> None:
        """Unauthorized where keys are wanted and the call's metadata has none that is valid."""
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        if self.settings.api_keys and not keys.valid(
            keys.sent_key(headers), self.settings.api_keys
        ):
            raise Unauthorized("This server wants an API key. Send authorization: Bearer KEY.")


def _request(message: Any) -> Request:
    """The message in the words of the REST protocol; raw contents are binary tensors."""
    raw = [len(content) for content in message.raw_input_contents]
    inputs = []
    for index, given in enumerate(message.inputs):
        parameters = _parameters(given.parameters)
        data = None
        if index < len(raw):
            parameters["binary_data_size"] = raw[index]
        else:
            data = list(given.contents.uint_contents)
        shape = list(given.shape)
        inputs.append(
            Input(
                name=given.name,
                shape=shape,
                datatype=given.datatype,
                data=data,
                parameters=parameters,
            )
        )
    return Request(
        inputs=inputs,
        parameters=_parameters(message.parameters),
        outputs=[
            WantedOutput(name=wanted.name, parameters=_parameters(wanted.parameters))
            for wanted in message.outputs
        ],
    )


def _parameters(parameters: Any) -> dict[str, Any]:
    chosen = ((name, value.WhichOneof("parameter_choice")) for name, value in parameters.items())
    return {name: getattr(parameters[name], kind) for name, kind in chosen if kind}
