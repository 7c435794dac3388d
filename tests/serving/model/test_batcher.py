"""Dynamic batching. The model here predicts the number of each row, so any mix-up shows."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrays import UInt8Array
from pipeline.contract import Predictions
from serving.errors import Overloaded
from serving.model.batcher import Batcher

POISON = 255
FATES = {("fails", RuntimeError), ("leaves", asyncio.CancelledError)}
"""Endings of a request that gets no answer, and the exception of each."""


def rows(first: int, count: int) -> UInt8Array:
    """Return images (count, 2, 1): the numbers from `first` on, in base 250, two digits each."""
    numbers = np.arange(first, first + count)
    return np.stack([numbers // 250, numbers % 250], axis=1).astype(np.uint8)[:, :, None]


def predict_numbers(images: UInt8Array) -> Predictions:
    """Predict the number of each row, and twice that as its only probability."""
    prediction = images[:, 0, 0].astype(np.int64) * 250 + images[:, 1, 0]
    return Predictions(prediction[:, None].astype(np.float32) * 2, prediction)


class Model:
    """Records the rows of its calls, and fails on POISON. Waits for `gate` if it is set."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.gate: threading.Event | None = None

    def __call__(self, images: UInt8Array) -> Predictions:
        self.calls.append(len(images))
        if self.gate:
            assert self.gate.wait(10)
        if (images == POISON).any():
            raise RuntimeError("poison")
        return predict_numbers(images)


def new_batcher(
    model: Callable[[UInt8Array], Predictions],
    *,
    max_batch_rows: int = 8,
    max_queue_rows: int = 1000,
    inline_rows: int = 0,
) -> Batcher:
    return Batcher(
        model,
        max_batch_rows=max_batch_rows,
        max_queue_rows=max_queue_rows,
        inline_rows=inline_rows,
    )


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def assert_predictions_of(predictions: Predictions, first: int, count: int) -> None:
    expected = np.arange(first, first + count)
    np.testing.assert_array_equal(predictions.prediction, expected)
    np.testing.assert_array_equal(predictions.probabilities, expected[:, None] * 2)


async def occupy(model: Model, queue: Batcher) -> "asyncio.Task[Predictions]":
    """Send a request of one row, which keeps the model busy until its gate opens."""
    model.gate = threading.Event()
    first = asyncio.create_task(queue.predict(rows(0, 1)))
    await wait_until(lambda: len(model.calls) == 1)
    return first


@pytest.mark.parametrize("inline_rows", [0, 3])
def test_a_single_request_runs_at_once(inline_rows: int) -> None:
    model = Model()
    assert_predictions_of(
        asyncio.run(new_batcher(model, inline_rows=inline_rows).predict(rows(7, 3))), 7, 3
    )
    assert model.calls == [3]


def test_requests_that_arrive_together_run_in_one_batch() -> None:
    async def scenario() -> None:
        pending = (queue.predict(rows(k, 1)) for k in range(6))
        for k, answer in enumerate(await asyncio.gather(*pending)):
            assert_predictions_of(answer, k, 1)

    model = Model()
    queue = new_batcher(model, inline_rows=8)
    asyncio.run(scenario())
    assert model.calls == [6]


def test_requests_that_wait_for_a_busy_model_run_in_one_batch() -> None:
    async def scenario() -> None:
        first = await occupy(model, queue)
        others = [asyncio.create_task(queue.predict(rows(k, 1))) for k in range(1, 6)]
        await wait_until(lambda: queue.waiting_rows == 5)
        assert model.gate is not None
        model.gate.set()
        for k, task in enumerate([first, *others]):
            assert_predictions_of(await task, k, 1)

    model = Model()
    queue = new_batcher(model)
    asyncio.run(scenario())
    assert model.calls == [1, 5]


def test_a_request_larger_than_a_batch_takes_several_batches() -> None:
    model = Model()
    assert_predictions_of(asyncio.run(new_batcher(model).predict(rows(0, 20))), 0, 20)
    assert model.calls == [8, 8, 4]


def test_a_full_queue_rejects_requests_and_recovers() -> None:
    async def scenario() -> None:
        first = await occupy(model, queue)
        waiting = asyncio.create_task(queue.predict(rows(1, 3)))
        await wait_until(lambda: queue.waiting_rows == 3)
        with pytest.raises(
            Overloaded, match="3 rows wait, and 2 more would exceed the queue's limit of 4"
        ):
            await queue.predict(rows(9, 2))
        last = asyncio.create_task(queue.predict(rows(4, 1)))
        await wait_until(lambda: queue.waiting_rows == 4)
        assert model.gate is not None
        model.gate.set()
        assert_predictions_of(await first, 0, 1)
        assert_predictions_of(await waiting, 1, 3)
        assert_predictions_of(await last, 4, 1)
        assert_predictions_of(await queue.predict(rows(5, 4)), 5, 4)

    model = Model()
    queue = new_batcher(model, max_queue_rows=4)
    asyncio.run(scenario())


def test_a_cancelled_request_frees_its_room_in_the_queue() -> None:
    async def scenario() -> None:
        first = await occupy(model, queue)
        cancelled = asyncio.create_task(queue.predict(rows(1, 4)))
        await wait_until(lambda: queue.waiting_rows == 4)
        cancelled.cancel()
        await wait_until(cancelled.done)
        assert queue.waiting_rows == 0
        other = asyncio.create_task(queue.predict(rows(5, 4)))
        await wait_until(lambda: queue.waiting_rows == 4)
        assert model.gate is not None
        model.gate.set()
        assert_predictions_of(await first, 0, 1)
        assert_predictions_of(await other, 5, 4)

    model = Model()
    queue = new_batcher(model, max_queue_rows=4)
    asyncio.run(scenario())
    assert model.calls == [1, 4]


@pytest.mark.parametrize("inline_rows", [0, 8])
def test_a_failing_request_does_not_fail_others_in_its_batch(inline_rows: int) -> None:
    async def scenario() -> None:
        poison = np.full((2, 2, 1), POISON, np.uint8)
        pending = (queue.predict(images) for images in (rows(1, 3), poison, rows(4, 3), rows(7, 8)))
        first, failing, second, later = await asyncio.gather(*pending, return_exceptions=True)
        assert isinstance(failing, RuntimeError)
        for answer, begin, count in ((first, 1, 3), (second, 4, 3), (later, 7, 8)):
            assert isinstance(answer, Predictions)
            assert_predictions_of(answer, begin, count)

    model = Model()
    queue = new_batcher(model, inline_rows=inline_rows)
    asyncio.run(scenario())


@pytest.mark.parametrize("inline_rows", [0, 8])
@pytest.mark.parametrize("error", [MemoryError(), SystemExit(1), StopIteration(), RuntimeError()])
def test_any_exception_fails_its_request_and_no_other(
    error: BaseException, inline_rows: int
) -> None:
    def raise_once(images: UInt8Array) -> Predictions:
        if (images == POISON).any():
            raise error
        return predict_numbers(images)

    async def scenario() -> None:
        with pytest.raises((MemoryError, RuntimeError)):
            await queue.predict(np.full((2, 2, 1), POISON, np.uint8))
        assert_predictions_of(await queue.predict(rows(3, 3)), 3, 3)

    queue = new_batcher(raise_once, inline_rows=inline_rows)
    asyncio.run(scenario())


def test_a_failure_to_join_an_answer_fails_that_request_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run out of memory while the parts of a large request are joined."""

    def join(parts: list[Predictions]) -> Predictions:
        if len(parts) > 1:
            raise MemoryError
        return parts[0]

    async def scenario() -> None:
        large, small = asyncio.gather(queue.predict(rows(0, 20))), queue.predict(rows(30, 2))
        with pytest.raises(MemoryError):
            await large
        assert_predictions_of(await small, 30, 2)

    monkeypatch.setattr("serving.model.batcher.concat_predictions", join)
    queue = new_batcher(Model())
    asyncio.run(scenario())
    assert queue.waiting_rows == 0


def test_a_queue_that_does_not_move_is_seen() -> None:
    async def scenario() -> None:
        assert queue.stalled_s == 0
        first = await occupy(model, queue)
        await wait_until(lambda: queue.stalled_s > 0.01)
        assert model.gate is not None
        model.gate.set()
        await first
        await wait_until(lambda: queue.stalled_s == 0)

    model = Model()
    queue = new_batcher(model)
    asyncio.run(scenario())


def test_other_requests_are_read_while_the_slices_of_a_failed_batch_are_tried() -> None:
    async def scenario() -> None:
        pending = [
            asyncio.create_task(queue.predict(np.full((1, 2, 1), POISON, np.uint8)))
            for _ in range(8)
        ]
        await wait_until(lambda: len(model.calls) == 2)
        assert not pending[-1].done()
        await asyncio.wait(pending)

    model = Model()
    queue = new_batcher(model, inline_rows=8)
    asyncio.run(scenario())
    assert model.calls == [8, *(8 * [1])]


@settings(deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 25), st.sampled_from(["stays", "stays", "leaves", "fails"])),
        min_size=1,
        max_size=30,
    ),
    max_batch_rows=st.integers(1, 12),
    inline_rows=st.sampled_from([0, 4, 12]),
    pauses=st.lists(st.integers(0, 3), min_size=30, max_size=30),
)
def test_any_mix_of_requests_gets_exactly_its_own_rows(
    requests: list[tuple[int, str]], max_batch_rows: int, inline_rows: int, pauses: list[int]
) -> None:
    async def scenario() -> None:
        tasks = []
        first = 0
        for (count, fate), pause in zip(requests, pauses, strict=False):
            images = rows(first, count)
            if fate == "fails":
                images[count // 2] = POISON
            tasks.append((asyncio.create_task(queue.predict(images)), first, count, fate))
            first += count
            for _ in range(pause):
                await asyncio.sleep(0)
            for task, *_, fate_of_task in tasks:
                if fate_of_task == "leaves":
                    task.cancel()
        answers = await asyncio.gather(*(task for task, *_ in tasks), return_exceptions=True)
        for answer, (_, begin, count, fate) in zip(answers, tasks, strict=True):
            if isinstance(answer, Predictions):
                assert_predictions_of(answer, begin, count)
            else:
                assert (fate, type(answer)) in FATES

    model = Model()
    queue = new_batcher(model, max_batch_rows=max_batch_rows, inline_rows=inline_rows)
    asyncio.run(scenario())
    assert all(0 < size <= max_batch_rows for size in model.calls)
    assert queue.waiting_rows == 0
