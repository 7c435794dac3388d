"""Dynamic batching by rows: what waits while the model is busy runs together in its next call.

An idle model answers a lone request at once; no timer ever waits for company. Knows nothing of
HTTP or Ray. Belongs to one event loop; the model runs in one thread, and onnxruntime lets go of
the GIL, so the loop reads and writes requests meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipeline.contract import Predictions, join
from serving.errors import Overloaded
from serving.protocol import Images
from serving.statistics import Statistics


@dataclass(eq=False)
class _Request:
    """Rows that wait are those from `taken` on; `parts` are the predictions of those before."""

    images: Images
    answer: asyncio.Future[Predictions]
    arrived_ns: int
    taken: int = 0
    parts: list[Predictions] = field(default_factory=list)


@dataclass(frozen=True)
class _Slice:
    """Rows `start` to `stop` of a request, which are the next ones of a batch."""

    request: _Request
    start: int
    stop: int

    @property
    def images(self) -> Images:
        return self.request.images[self.start : self.stop]


class Batcher:
    """Calls `model` with at most `max_batch_rows` images at a time, first come, first served.

    A request with more rows takes several calls. `model` maps uint8 (N, height, width) to N
    predictions; what it raises reaches the callers that had rows in that batch, and no others.
    """

    def __init__(
        self,
        model: Callable[[Images], Predictions],
        *,
        max_batch_rows: int,
        max_queue_rows: int,
    ) -> None:
        self._model = model
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._queue: deque[_Request] = deque()
        self._waiting_rows = 0
        self.statistics = Statistics()
        self._pump: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @property
    def waiting_rows(self) -> int:
        """Rows of requests that no call of the model has taken yet."""
        return self._waiting_rows

    async def predict(self, images: Images) -> Predictions:
        """Predictions of exactly these rows, N >= 1, in order; Overloaded where the queue is full.

        The caller may be cancelled: its rows that still wait are then not computed.
        """
        self._admit(len(images))
        arrived_ns = time.perf_counter_ns()
        request = _Request(images, asyncio.get_running_loop().create_future(), arrived_ns)
        self._queue.append(request)
        if self._pump is None:
            self._pump = asyncio.create_task(self._run())
        outcome = self.statistics.fail
        try:
            predictions = await request.answer
            outcome = self.statistics.success
            return predictions
        finally:
            outcome.add(time.perf_counter_ns() - arrived_ns)
            self._waiting_rows -= len(images) - request.taken
            request.taken = len(images)

    def close(self) -> None:
        """Ends the model's thread, after the call that it is in."""
        self._thread.shutdown(wait=False)

    def _admit(self, rows: int) -> None:
        if self._waiting_rows + rows > self._max_queue_rows:
            raise Overloaded(
                f"The server is busy: {self._waiting_rows} rows wait, and {rows} more would pass "
                f"its bound of {self._max_queue_rows}. Send the request again in a second."
            )
        self._waiting_rows += rows

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            started_ns = time.perf_counter_ns()
            for piece in batch:
                if piece.start == 0:
                    self.statistics.queue.add(started_ns - piece.request.arrived_ns)
            try:
                predictions = await loop.run_in_executor(self._thread, self._call, batch)
            except Exception as error:
                for piece in batch:
                    if not piece.request.answer.done():
                        piece.request.answer.set_exception(error)
            else:
                rows = sum(piece.stop - piece.start for piece in batch)
                self.statistics.add_batch(rows, time.perf_counter_ns() - started_ns)
                _deliver(batch, predictions)
        self._pump = None

    def _take(self) -> list[_Slice]:
        """The next batch; empty when nothing waits."""
        batch: list[_Slice] = []
        room = self._max_batch_rows
        while self._queue and room:
            request = self._queue[0]
            if not request.answer.done():
                start, request.taken = request.taken, min(len(request.images), request.taken + room)
                batch.append(_Slice(request, start, request.taken))
                room -= request.taken - start
                self._waiting_rows -= request.taken - start
                if request.taken < len(request.images):
                    break
            self._queue.popleft()
        return batch

    def _call(self, batch: list[_Slice]) -> Predictions:
        """One call of the model, in its thread."""
        images = batch[0].images if len(batch) == 1 else np.concatenate([s.images for s in batch])
        predictions = self._model(images)
        assert len(predictions.prediction) == len(images)
        return predictions


def _deliver(batch: list[_Slice], predictions: Predictions) -> None:
    begin = 0
    for piece in batch:
        end = begin + piece.stop - piece.start
        request = piece.request
        request.parts.append(
            Predictions(predictions.probabilities[begin:end], predictions.prediction[begin:end])
        )
        if piece.stop == len(request.images) and not request.answer.done():
            request.answer.set_result(join(request.parts))
        begin = end
