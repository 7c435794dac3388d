"""What a client can cause. Messages go to clients: no traces, no paths of the server, little echo.

Knows nothing of HTTP; `asgi.STATUS` is the one table from these to a status.

    RequestError            what a client can mend; base of all below
    ├── RequestInvalid      a body that breaks the protocol or the model's tensors
    ├── PayloadTooLarge     more bytes or rows than one request may carry
    ├── UnsupportedMedia    a body in a format or encoding that is not understood
    ├── ImageInvalid        an image that is damaged, or not of the model's size
    ├── Unauthorized        no API key, or one that is not valid
    ├── AddressUnknown      an address at which there is nothing
    ├── MethodUnknown       a method that the address does not take
    ├── ModelUnknown        a model or version that is not served here
    ├── NotReady            a model that fails its self-test
    └── Overloaded          a full queue: the same request may succeed a moment later
"""

from __future__ import annotations

import reprlib

from pipeline.contract import UserError


class RequestError(UserError):
    """Base of what a client can mend; the message is the whole answer."""


class RequestInvalid(RequestError):
    pass


class PayloadTooLarge(RequestError):
    pass


class UnsupportedMedia(RequestError):
    pass


class ImageInvalid(RequestError):
    pass


class Unauthorized(RequestError):
    pass


class AddressUnknown(RequestError):
    pass


class MethodUnknown(RequestError):
    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"This address does not take {short(method)}. Send {allowed}.")
        self.allowed = allowed


class ModelUnknown(RequestError):
    pass


class NotReady(RequestError):
    pass


class Overloaded(RequestError):
    pass


def short(value: object) -> str:
    """A client's value as it may stand in a message: one short printable line of ASCII."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()
