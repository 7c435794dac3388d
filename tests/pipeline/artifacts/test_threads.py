from __future__ import annotations

import threading
import time

import pytest

from pipeline.artifacts.threads import MAX_THREADS, map_waiting, parallel_map


def test_results_are_in_the_order_of_the_items() -> None:
    assert parallel_map(lambda number: number * 2, range(500)) == list(range(0, 1000, 2))
    assert parallel_map(len, list[str]()) == []


def test_work_is_done_at_once() -> None:
    barrier = threading.Barrier(8, timeout=30)
    assert len(parallel_map(lambda _: barrier.wait(), range(8))) == 8


def test_the_error_of_the_earliest_item_is_raised() -> None:
    both_failed = threading.Barrier(2, timeout=30)

    def fail(number: int) -> None:
        both_failed.wait()
        raise ValueError(number)

    with pytest.raises(ValueError, match="^0$"):
        parallel_map(fail, range(2))


def test_calls_inside_of_calls_share_the_threads() -> None:
    before = threading.active_count()
    counts = list[int]()

    def count(_: int) -> None:
        counts.append(threading.active_count())

    parallel_map(lambda _: parallel_map(count, range(50)), range(50))
    assert max(counts) - before <= MAX_THREADS + 1
    barrier = threading.Barrier(8, timeout=30)
    (used,) = parallel_map(lambda _: parallel_map(lambda _: barrier.wait(), range(8)), range(1))
    assert len(used) == 8


def test_calls_that_wait_are_done_by_threads() -> None:
    used = set[int]()

    def work(number: int) -> int:
        used.add(threading.get_ident())
        time.sleep(0.002)
        return number * number

    assert map_waiting(work, range(100)) == [number * number for number in range(100)]
    assert len(used) > 1
    assert map_waiting(abs, [-1]) == [1]
