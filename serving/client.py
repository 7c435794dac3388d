"""The Python client: images in, predictions out, over the Open Inference Protocol.

    with Client("http://127.0.0.1:8000", model="mnist") as client:
        labels = client.predict(images).prediction

Tensors travel as binary. A request that failed on its way is sent again, as a prediction changes
nothing; any number of images is sent as requests of `max_rows`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx
import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.contract import INPUT, PREDICTION, PROBABILITIES, Predictions, concat_predictions
from pipeline.errors import UserError
from serving.protocol.types import DATATYPES, JSON_LENGTH

Outcome: TypeAlias = httpx.Response | httpx.TransportError

RETRIED = {408, 429, 500, 502, 503, 504}

FIRST_DELAY_S, LONGEST_DELAY_S = 0.05, 2.0


class ServerError(UserError):
    """What the server answered instead of predictions, or that it did not; `status` 0 for none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _BaseClient:
    """What both clients share: requests, answers, and when to try again."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        version: str = "",
        api_key: str = "",
        max_rows: int = 1024,
        timeout_s: float = 10.0,
        attempts: int = 5,
    ) -> None:
        """`timeout_s` is for each of the `attempts`; without a version the server chooses."""
        path = f"/v2/models/{quote(model, safe='')}"
        path += f"/versions/{quote(version, safe='')}" if version else ""
        self._path, self._max_rows, self._attempts = f"{path}/infer", max_rows, attempts
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._options: dict[str, Any] = {"base_url": url, "headers": headers, "timeout": timeout_s}

    def _requests(self, images: UInt8Array) -> Iterator[dict[str, Any]]:
        if images.dtype != np.uint8 or images.ndim != 3 or not len(images):
            raise ValueError(
                f"images must be uint8 (N, height, width), not {images.dtype} {images.shape}"
            )
        for start in range(0, len(images), self._max_rows):
            rows = np.ascontiguousarray(images[start : start + self._max_rows])
            tensor = {
                "name": INPUT,
                "shape": rows.shape,
                "datatype": DATATYPES["uint8"],
                "parameters": {"binary_data_size": rows.nbytes},
            }
            header = json.dumps(
                {"inputs": [tensor], "parameters": {"binary_data_output": True}}
            ).encode()
            yield {
                "method": "POST",
                "url": self._path,
                "content": header + rows.tobytes(),
                "headers": {JSON_LENGTH: str(len(header))},
            }

    def _delay(self, attempt: int, outcome: Outcome) -> float | None:
        """Seconds until the next attempt, with full jitter; None where there is to be none."""
        if attempt >= self._attempts:
            return None
        delay = random.uniform(0, min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**attempt))
        if isinstance(outcome, httpx.TransportError):
            return delay
        if outcome.status_code not in RETRIED:
            return None
        wish = outcome.headers.get("retry-after", "")
        return max(delay, min(float(wish), LONGEST_DELAY_S)) if wish.isdecimal() else delay


def _read(outcome: Outcome) -> Predictions:
    if isinstance(outcome, httpx.TransportError):
        raise ServerError(f"The server cannot be reached: {outcome!r}.") from outcome
    if outcome.status_code != 200:
        raise ServerError(_message(outcome), outcome.status_code)
    at = int(outcome.headers[JSON_LENGTH])
    found = dict[str, Any]()
    for tensor in json.loads(outcome.content[:at])["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        dtype = "<f4" if tensor["name"] == PROBABILITIES else "<i8"
        values = np.frombuffer(outcome.content[at : at + size], dtype)
        found[tensor["name"]] = values.reshape(tensor["shape"])
        at += size
    return Predictions(found[PROBABILITIES], found[PREDICTION])


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered {response.status_code} {response.reason_phrase}."


class Client(_BaseClient):
    """A client that waits for its answers; may be shared by threads."""

    def __enter__(self) -> Client:
        self._http = httpx.Client(**self._options)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: object,
    ) -> None:
        self._http.close()

    def predict(self, images: UInt8Array) -> Predictions:
        """Predictions of images uint8 (N, height, width), N >= 1, in their order.

        Raises ServerError where the server refuses them, or does not answer in all attempts.
        """
        return concat_predictions(
            [_read(self._send(request)) for request in self._requests(images)]
        )

    def _send(self, request: dict[str, Any]) -> Outcome:
        attempt = 0
        while True:
            attempt += 1
            try:
                outcome: Outcome = self._http.request(**request)
            except httpx.TransportError as error:
                outcome = error
            if (delay := self._delay(attempt, outcome)) is None:
                return outcome
            time.sleep(delay)


class AsyncClient(_BaseClient):
    """A client for an event loop, which has several requests under way at once."""

    MAX_AT_ONCE = 4

    async def __aenter__(self) -> AsyncClient:
        self._http = httpx.AsyncClient(**self._options)
        self._room = asyncio.Semaphore(self.MAX_AT_ONCE)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: object,
    ) -> None:
        await self._http.aclose()

    async def predict(self, images: UInt8Array) -> Predictions:
        """Predictions of images uint8 (N, height, width), N >= 1, in their order.

        Raises ServerError where the server refuses them, or does not answer in all attempts.
        """
        outcomes = await asyncio.gather(*map(self._send, self._requests(images)))
        return concat_predictions([_read(outcome) for outcome in outcomes])

    async def _send(self, request: dict[str, Any]) -> Outcome:
        attempt = 0
        while True:
            attempt += 1
            async with self._room:
                try:
                    outcome: Outcome = await self._http.request(**request)
                except httpx.TransportError as error:
                    outcome = error
            if (delay := self._delay(attempt, outcome)) is None:
                return outcome
            await asyncio.sleep(delay)
