"""Dynamic batching by rows: what waits while the model is busy runs together in its next call.

An idle model answers a lone request at once; no timer ever waits for company. Knows nothing of
HTTP or Ray. Belongs to one event loop. A call of few rows takes less time than handing it to a
thread, so the loop makes it itself, once it has read all that has come; larger ones run in one
thread, and onnxruntime lets go of the GIL, so the loop reads and writes requests meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.contract import Predictions, concat_predictions
from serving.errors import Overloaded
from serving.model.statistics import Statistics

INLINE_ROWS = 16


@dataclass(eq=False)
class _Request:
    """Rows that wait are those from `taken` on; `parts` are the predictions of those before."""

    images: UInt8Array
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
    def images(self) -> UInt8Array:
        return self.request.images[self.start : self.stop]


class Batcher:
    """Calls `model` with at most `max_batch_rows` images at a time, first come, first served.

    A request with more rows takes several calls. `model` maps uint8 (N, height, width) to N
    predictions; what it raises reaches the callers alone whose rows it raises for.
    """

    def __init__(
        self,
        model: Callable[[UInt8Array], Predictions],
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        inline_rows: int = INLINE_ROWS,
    ) -> None:
        """A call of at most `inline_rows` is made by the event loop."""
        self._model = model
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._inline_rows = inline_rows
        self._queue: deque[_Request] = deque()
        self._alone: deque[_Slice] = deque()
        self._waiting_rows = 0
        self.statistics = Statistics()
        self._working = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @property
    def waiting_rows(self) -> int:
        """Rows of requests that no call of the model has taken yet."""
        return self._waiting_rows

    def require_room(self, rows: int) -> None:
        """Overloaded where the queue has no room for so many rows now."""
        if self._waiting_rows + rows > self._max_queue_rows:
            raise Overloaded(
                f"The server is busy: {self._waiting_rows} rows wait, and {rows} more would pass "
                f"its bound of {self._max_queue_rows}. Send the request again in a second."
            )

    async def predict(self, images: UInt8Array) -> Predictions:
        """Predictions of exactly these rows, N >= 1, in order; Overloaded where the queue is full.

        The caller may be cancelled: its rows that still wait are then not computed.
        """
        self.require_room(len(images))
        self._waiting_rows += len(images)
        arrived_ns = time.perf_counter_ns()
        loop = asyncio.get_running_loop()
        request = _Request(images, loop.create_future(), arrived_ns)
        self._queue.append(request)
        if not self._working:
            self._working = True
            loop.call_soon(self._work, loop)
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

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Calls the model until nothing waits, or goes on when its thread is done."""
        while batch := self._take():
            started_ns = time.perf_counter_ns()
            for piece in batch:
                if piece.start == 0:
                    self.statistics.queue.add(started_ns - piece.request.arrived_ns)
            if sum(piece.stop - piece.start for piece in batch) > self._inline_rows:
                future = loop.run_in_executor(self._thread, self._call, batch)
                future.add_done_callback(partial(self._go_on, loop, batch, started_ns))
                return
            self._answer(batch, started_ns, partial(self._call, batch))
        self._working = False

    def _go_on(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Slice],
        started_ns: int,
        future: asyncio.Future[Predictions],
    ) -> None:
        self._answer(batch, started_ns, future.result)
        self._work(loop)

    def _answer(
        self, batch: list[_Slice], started_ns: int, result: Callable[[], Predictions]
    ) -> None:
        try:
            predictions = result()
        except Exception as error:
            if len(batch) > 1:
                # Each again by itself, so that one cannot fail its neighbours.
                self._alone.extend(batch)
            elif not (answer := batch[0].request.answer).done():
                answer.set_exception(error)
        else:
            self.statistics.add_batch(
                len(predictions.prediction), time.perf_counter_ns() - started_ns
            )
            _deliver(batch, predictions)

    def _take(self) -> list[_Slice]:
        """The next batch; empty when nothing waits."""
        if self._alone:
            return [self._alone.popleft()]
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
        """One call of the model."""
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
            request.answer.set_result(concat_predictions(request.parts))
        begin = end
