"""The errors that a client can cause, each with its HTTP status and its gRPC code.

Messages go to clients: no tracebacks, no paths of the server, little of the client's own text.

    RequestError
    ├── RequestInvalid      400  the body breaks the protocol or the model's tensors
    ├── Unauthorized        401  the API key is missing or not valid
    ├── AddressUnknown      404  no route has this address
    ├── ModelUnknown        404  the model or version is not served here
    ├── MethodUnknown       405  the route does not take this method
    ├── BodyTimeout         408  the body did not arrive in time
    ├── PayloadTooLarge     413  more bytes or rows than one request may carry
    ├── UnsupportedMedia    415  the format or encoding of the body is not understood
    ├── ImageInvalid        422  the image is damaged, or blank, or too large
    ├── DecodingFailed      422  decoding the body takes too much time or memory
    ├── NotReady            503  the model fails its self-test
    └── Overloaded          503  the queue is full; the same request may succeed a moment later

To add one: subclass RequestError here. docs/reference/errors.md is generated from this module.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import ClassVar

from pipeline.errors import UserError


class RequestError(UserError):
    """Base of all errors that a client can fix. The message is the whole answer."""

    status: ClassVar[int]
    """The HTTP status of the answer."""
    grpc_code: ClassVar[str] = "INVALID_ARGUMENT"
    """The name of the gRPC status code of the answer."""
    headers: Mapping[str, str] = {}
    """The HTTP headers of the answer, beside those of every answer."""


class RequestInvalid(RequestError):
    """The body breaks the protocol or the model's tensors."""

    status = 400


class Unauthorized(RequestError):
    """The API key is missing or not valid."""

    status = 401
    grpc_code = "UNAUTHENTICATED"
    headers: Mapping[str, str] = {"www-authenticate": "Bearer"}


class AddressUnknown(RequestError):
    """No route has this address."""

    status = 404


class ModelUnknown(RequestError):
    """The model or version is not served here."""

    status = 404
    grpc_code = "NOT_FOUND"


class MethodUnknown(RequestError):
    """The route does not take this method."""

    status = 405

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"This address does not take {safe_repr(method)}. Send {allowed}.")
        self.headers = {"allow": allowed}


class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    status = 408
    grpc_code = "DEADLINE_EXCEEDED"
    headers: Mapping[str, str] = {"connection": "close"}


class PayloadTooLarge(RequestError):
    """The request carries more bytes or rows than one request may."""

    status = 413
    grpc_code = "RESOURCE_EXHAUSTED"


class UnsupportedMedia(RequestError):
    """The format or encoding of the body is not understood."""

    status = 415


class ImageInvalid(RequestError):
    """The image is damaged, blank, too large, or not of the model's size or colour."""

    status = 422


class DecodingFailed(RequestError):
    """Decoding the body takes too much time or memory."""

    status = 422


class NotReady(RequestError):
    """The model fails its self-test."""

    status = 503
    grpc_code = "UNAVAILABLE"
    headers: Mapping[str, str] = {"retry-after": "1"}


class Overloaded(RequestError):
    """The queue is full; the same request may succeed a moment later."""

    status = 503
    grpc_code = "UNAVAILABLE"
    headers: Mapping[str, str] = {"retry-after": "1"}


def safe_repr(value: object) -> str:
    """Return a client's value as one short printable line of ASCII, fit for a message."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()
