"""Dynamic batching by rows: requests that arrive while the model is busy share its next call.

An idle model answers a single request at once: no timer waits for more. A small batch runs in the
event loop itself, after the loop has read all pending requests, as the call takes less time than
handing it to a thread. A larger one runs in one thread: onnxruntime releases the GIL, so the loop
reads and writes requests meanwhile. Knows nothing of HTTP or Ray; belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline.arrays import UInt8Array
from pipeline.contract import Predictions, concat_predictions
from serving.errors import Overloaded
from serving.model.statistics import Statistics


@dataclass(eq=False)
class _Request:
    """A request: rows from `taken` on still wait, `predictions` are those of earlier rows."""

    images: UInt8Array
    answer: asyncio.Future[Predictions]
    arrived_ns: int
    taken: int = 0
    predictions: list[Predictions] = field(default_factory=list)


@dataclass(frozen=True)
class _Slice:
    """Rows `start` to `stop` of a request, as a slice of a batch."""

    request: _Request
    start: int
    stop: int

    @property
    def images(self) -> UInt8Array:
        return self.request.images[self.start : self.stop]


class Batcher:
    """Calls `model` with at most `max_batch_rows` images at a time, first come, first served.

    A request with more rows takes several calls. `model` maps uint8 (N, height, width) to N
    predictions. If it raises for a batch, each slice is retried singly, so that only the requests
    whose own rows fail get the error.
    """

    def __init__(
        self,
        model: Callable[[UInt8Array], Predictions],
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        inline_rows: int,
    ) -> None:
        """Run batches of at most `inline_rows` in the event loop, and larger ones in a thread."""
        self._model = model
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._inline_rows = inline_rows
        self._queue: deque[_Request] = deque()
        self._retry_singly: deque[_Slice] = deque()
        self._waiting_rows = 0
        self.statistics = Statistics()
        self._running = False
        self._progress_s = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @property
    def waiting_rows(self) -> int:
        """Rows that no call of the model has taken yet."""
        return self._waiting_rows

    @property
    def stalled_s(self) -> float:
        """Seconds for which requests have waited without any progress; 0 if none waits."""
        return time.monotonic() - self._progress_s if self._running else 0.0

    def require_room(self, rows: int) -> None:
        """Raise Overloaded if the queue has no room for so many rows now."""
        if self._waiting_rows + rows > self._max_queue_rows:
            raise Overloaded(
                f"The server is busy: {self._waiting_rows} rows wait, and {rows} more would exceed "
                f"the queue's limit of {self._max_queue_rows}. Send the request again in a second."
            )

    async def predict(self, images: UInt8Array) -> Predictions:
        """Return the predictions of these rows, N >= 1, in order.

        Raise Overloaded if the queue is full. If the calling task is cancelled, as it is when the
        client leaves, rows that still wait are dropped.
        """
        self.require_room(len(images))
        self._waiting_rows += len(images)
        arrived_ns = time.perf_counter_ns()
        loop = asyncio.get_running_loop()
        request = _Request(images, loop.create_future(), arrived_ns)
        self._queue.append(request)
        if not self._running:
            self._running = True
            self._progress_s = time.monotonic()
            # The loop reads all other pending requests first, so that they join the batch.
            loop.call_soon(self._run_batches, loop)
        outcome = self.statistics.fail
        try:
            predictions = await request.answer
            outcome = self.statistics.success
            return predictions
        finally:
            outcome.add(time.perf_counter_ns() - arrived_ns)
            # Some rows still wait if the task was cancelled or an earlier slice failed.
            self._waiting_rows -= len(images) - request.taken
            request.taken = len(images)
            if not request.answer.done() or request.answer.cancelled():
                with suppress(ValueError):
                    self._queue.remove(request)

    def _run_batches(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call the model until no rows wait; continue after a batch that runs in the thread."""
        while batch := self._next_batch():
            started_ns = time.perf_counter_ns()
            for item in batch:
                if item.start == 0:
                    self.statistics.queue.add(started_ns - item.request.arrived_ns)
            if sum(item.stop - item.start for item in batch) > self._inline_rows:
                try:
                    future = loop.run_in_executor(self._thread, self._predict_batch, batch)
                except RuntimeError as error:
                    # No thread can be started.
                    _fail(batch, error)
                    continue
                future.add_done_callback(partial(self._finish_in_loop, loop, batch, started_ns))
                return
            self._answer_batch(batch, started_ns, partial(self._predict_batch, batch))
            if self._retry_singly:
                # There may be a thousand of them, and other requests must be read meanwhile.
                loop.call_soon(self._run_batches, loop)
                return
        self._running = False

    def _finish_in_loop(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Slice],
        started_ns: int,
        future: asyncio.Future[Predictions],
    ) -> None:
        """Answer a batch that ran in the thread, then run the next ones."""
        self._answer_batch(batch, started_ns, future.result)
        self._run_batches(loop)

    def _answer_batch(
        self, batch: list[_Slice], started_ns: int, result: Callable[[], Predictions]
    ) -> None:
        self._progress_s = time.monotonic()
        try:
            predictions = result()
        # Whatever it is, those that wait must get an answer.
        except BaseException as error:
            if len(batch) > 1:
                # One bad request must not fail the others in its batch.
                self._retry_singly.extend(batch)
            else:
                _fail(batch, error)
            return
        self.statistics.add_batch(len(predictions.prediction), time.perf_counter_ns() - started_ns)
        begin = 0
        for item in batch:
            end = begin + item.stop - item.start
            try:
                _deliver(item, predictions, begin, end)
            except Exception as error:
                # For example, no memory is left to join the parts of a large request.
                _fail([item], error)
            begin = end

    def _next_batch(self) -> list[_Slice]:
        """Take the next batch from the queue; empty if no rows wait."""
        while self._retry_singly:
            item = self._retry_singly.popleft()
            if not item.request.answer.done():
                return [item]
        batch: list[_Slice] = []
        room = self._max_batch_rows
        while self._queue and room:
            request = self._queue[0]
            # A request whose answer is done was cancelled, or an earlier slice of it failed.
            if not request.answer.done():
                start = request.taken
                request.taken = min(len(request.images), start + room)
                batch.append(_Slice(request, start, request.taken))
                room -= request.taken - start
                self._waiting_rows -= request.taken - start
                if request.taken < len(request.images):
                    break
            self._queue.popleft()
        return batch

    def _predict_batch(self, batch: list[_Slice]) -> Predictions:
        """Call the model once."""
        if len(batch) == 1:
            images = batch[0].images
        else:
            images = np.concatenate([item.images for item in batch])
        try:
            predictions = self._model(images)
        except StopIteration as error:
            # A future does not take it.
            raise RuntimeError(f"the model raised {error!r}") from error
        assert len(predictions.prediction) == len(images)
        return predictions


def _deliver(item: _Slice, predictions: Predictions, begin: int, end: int) -> None:
    """Give rows `begin` to `end` of a batch to their request, and answer it if it is complete."""
    request = item.request
    request.predictions.append(
        Predictions(predictions.probabilities[begin:end], predictions.prediction[begin:end])
    )
    if item.stop == len(request.images) and not request.answer.done():
        request.answer.set_result(concat_predictions(request.predictions))


def _fail(batch: list[_Slice], error: BaseException) -> None:
    """Answer the requests of a batch with an error."""
    if not isinstance(error, Exception):
        # It would end the loop that reads the answer.
        error = RuntimeError(f"the model raised {error!r}")
    for item in batch:
        if not item.request.answer.done():
            item.request.answer.set_exception(error)
