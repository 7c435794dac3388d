"""The Python client of the server: images in, predictions out. Needs only httpx and numpy.

    import numpy as np

    from serving.client import Client

    images = np.zeros((3, 28, 28), np.uint8)
    with Client("http://127.0.0.1:8000", model="mnist") as client:
        print(client.predict(images).prediction)

It speaks the Open Inference Protocol with binary tensors. Any number of images is sent as requests
of at most `max_rows`, which are made as they are sent. A prediction changes nothing, so a request
that failed in transit or met an overloaded server is sent again, until `deadline_s`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx
import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.contract import INPUT, PREDICTION, PROBABILITIES, Predictions, concat_predictions
from pipeline.errors import UserError
from pipeline.process.addresses import is_loopback
from serving.protocol.types import DATATYPES, JSON_LENGTH

Outcome: TypeAlias = httpx.Response | httpx.TransportError
"""The result of one attempt: a response, or the error that prevented one."""

RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}
"""Statuses after which the same request may succeed."""

BASE_DELAY_S = 0.05
"""After attempt n, wait a random time of at most BASE_DELAY_S * 2**n."""

MAX_DELAY_S = 2.0
"""The longest wait between two attempts, also if Retry-After asks for more."""


class ServerError(UserError):
    """The server refused the request or did not answer.

    `status` is the HTTP status of the answer, or 0 if there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _BaseClient:
    """The parts that both clients share: requests, and when to send one again."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        version: str = "",
        api_key: str = "",
        max_rows: int = 1024,
        timeout_s: float = 10.0,
        deadline_s: float = 60.0,
        attempts: int = 5,
    ) -> None:
        """Prepare a client. Its connections end with a `with` block, or by closing it.

        Args:
            url: Address of the server, such as http://127.0.0.1:8000.
            model: Name of the model.
            version: Version of the model. If empty, the server answers with the one it serves.
            api_key: Key to send, if the server requires one.
            max_rows: Maximum number of images per request.
            timeout_s: Seconds to wait for a connection, and for each read and write, per attempt.
            deadline_s: Seconds for a call of `predict`, after which no attempt begins.
            attempts: Maximum number of times that a request is sent.
        """
        path = f"/v2/models/{quote(model, safe='')}"
        if version:
            path += f"/versions/{quote(version, safe='')}"
        self._path = f"{path}/infer"
        self._max_rows = max_rows
        self._timeout_s, self._deadline_s = timeout_s, deadline_s
        self._attempts = attempts
        # To compress floats takes the server longer than to send them.
        headers = {"accept-encoding": "identity"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._options: dict[str, Any] = {
            "base_url": url,
            "headers": headers,
            # A proxy that the environment names may not reach this machine's loopback.
            "trust_env": not is_loopback(httpx.URL(url).host),
        }

    def _requests(self, images: UInt8Array) -> Iterator[dict[str, Any]]:
        """Yield the arguments of httpx's `request` for at most `max_rows` images at a time."""
        if images.dtype != np.uint8 or images.ndim != 3 or not len(images):
            raise ValueError(
                "images must be uint8 (N, height, width) with N >= 1, not "
                f"{images.dtype} {images.shape}"
            )
        for start in range(0, len(images), self._max_rows):
            rows = np.ascontiguousarray(images[start : start + self._max_rows])
            tensor = {
                "name": INPUT,
                "shape": rows.shape,
                "datatype": DATATYPES["uint8"],
                "parameters": {"binary_data_size": rows.nbytes},
            }
            request = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
            json_part = json.dumps(request).encode()
            yield {
                "method": "POST",
                "url": self._path,
                "content": json_part + rows.tobytes(),
                "headers": {JSON_LENGTH: str(len(json_part))},
            }

    def _timeout(self, deadline: float, outcome: Outcome | None) -> float:
        """Return the timeout of an attempt. Raise ServerError if the deadline has passed.

        `outcome` is that of the attempt before.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            late = f"The server did not answer within {self._deadline_s:g} s."
            if isinstance(outcome, httpx.Response):
                raise ServerError(f"{late} {_error_message(outcome)}", outcome.status_code)
            raise ServerError(late)
        return min(self._timeout_s, left)

    def _retry_delay(self, attempt: int, outcome: Outcome) -> float | None:
        """Return the seconds until the next attempt; None if there is to be no other."""
        if attempt >= self._attempts:
            return None
        # A random share of the delay ("full jitter") spreads clients that failed together.
        delay = random.uniform(0, min(MAX_DELAY_S, BASE_DELAY_S * 2**attempt))
        if isinstance(outcome, httpx.TransportError):
            return delay
        if outcome.status_code not in RETRIED_STATUSES:
            return None
        retry_after = outcome.headers.get("retry-after", "")
        if retry_after.isdecimal():
            return max(delay, min(float(retry_after), MAX_DELAY_S))
        return delay


def _read_predictions(outcome: Outcome) -> Predictions:
    if isinstance(outcome, httpx.TransportError):
        raise ServerError(f"The server cannot be reached: {outcome!r}.") from outcome
    if outcome.status_code != 200:
        raise ServerError(_error_message(outcome), outcome.status_code)
    # The binary tensors follow the JSON, in the order in which it lists them.
    offset = int(outcome.headers[JSON_LENGTH])
    outputs = dict[str, Any]()
    for tensor in json.loads(outcome.content[:offset])["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        dtype = "<f4" if tensor["name"] == PROBABILITIES else "<i8"
        values = np.frombuffer(outcome.content[offset : offset + size], dtype)
        outputs[tensor["name"]] = values.reshape(tensor["shape"])
        offset += size
    return Predictions(outputs[PROBABILITIES], outputs[PREDICTION])


def _error_message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered {response.status_code} {response.reason_phrase}."


class Client(_BaseClient):
    """A client that blocks until the answer is there. Threads may share one."""

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(**self._options)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(self, images: UInt8Array) -> Predictions:
        """Return the predictions of the images, in their order.

        Raise ValueError if the images have another dtype or shape. Raise ServerError if the server
        refuses them, or if no attempt succeeds in time.

        Args:
            images: Raw pixels, uint8 (N, height, width), N >= 1.
        """
        deadline = time.monotonic() + self._deadline_s
        parts = [
            _read_predictions(self._send(request, deadline)) for request in self._requests(images)
        ]
        return concat_predictions(parts)

    def _send(self, request: dict[str, Any], deadline: float) -> Outcome:
        attempt = 0
        outcome: Outcome | None = None
        while True:
            attempt += 1
            timeout = self._timeout(deadline, outcome)
            try:
                outcome = self._http.request(**request, timeout=timeout)
            except httpx.TransportError as error:
                outcome = error
            delay = self._retry_delay(attempt, outcome)
            if delay is None:
                return outcome
            time.sleep(min(delay, max(0.0, deadline - time.monotonic())))


class AsyncClient(_BaseClient):
    """A client for an event loop; it sends several requests of one call at once."""

    MAX_AT_ONCE = 4
    """Maximum number of requests of one call that are under way at once."""

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self._options)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(self, images: UInt8Array) -> Predictions:
        """Return the predictions of the images, in their order.

        Raise ValueError if the images have another dtype or shape. Raise ServerError if the server
        refuses them, or if no attempt succeeds in time; requests of the call that are under way are
        then cancelled.

        Args:
            images: Raw pixels, uint8 (N, height, width), N >= 1.
        """
        deadline = time.monotonic() + self._deadline_s
        requests = enumerate(self._requests(images))
        parts = dict[int, Predictions]()

        async def send_all() -> None:
            for number, request in requests:
                parts[number] = _read_predictions(await self._send(request, deadline))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.MAX_AT_ONCE):
                    group.create_task(send_all())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return concat_predictions([parts[number] for number in sorted(parts)])

    async def _send(self, request: dict[str, Any], deadline: float) -> Outcome:
        attempt = 0
        outcome: Outcome | None = None
        while True:
            attempt += 1
            timeout = self._timeout(deadline, outcome)
            try:
                outcome = await self._http.request(**request, timeout=timeout)
            except httpx.TransportError as error:
                outcome = error
            delay = self._retry_delay(attempt, outcome)
            if delay is None:
                return outcome
            await asyncio.sleep(min(delay, max(0.0, deadline - time.monotonic())))
