"""Threads: calls that wait for a network, made so that a signal ends the wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

A = TypeVar("A")

B = TypeVar("B")

MAX_THREADS = 32

SAMPLE = 32
"""Calls that tell whether the others wait."""
"""All calls share them, so one inside of another starts few more."""

POLL_S = 0.5
"""A signal that comes just before a wait begins is handled when the wait ends."""

_free_threads = threading.Semaphore(MAX_THREADS)


def interruptible(work: Callable[[], B]) -> B:
    """Return the result of `work`, a call into other than Python code that may wait long.

    Only the main thread handles signals, and only in Python code, so there `work` runs in a thread.
    """
    return _wait(start(work)) if _is_main() else work()


def map_waiting(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """Apply `work` to each item; return results in order.

    If the first calls wait more than they compute, as on a network, threads do the rest. Where they
    do not, as on a local disk, threads would only get in each other's way.
    """
    first = items[:SAMPLE]
    started, cpu_started = time.perf_counter(), time.thread_time()
    results = [work(item) for item in first]
    cpu_s = time.thread_time() - cpu_started
    waited_s = time.perf_counter() - started - cpu_s
    rest = items[SAMPLE:]
    return results + (parallel_map(work, rest) if waited_s > cpu_s else [*map(work, rest)])


def parallel_map(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Apply `work`, which waits for storage, to each item in threads; return results in order.

    If several calls fail, the error of the earliest item is raised.
    """
    todo = list(items)
    numbers = iter(range(len(todo)))
    results = dict[int, B]()
    errors = dict[int, BaseException]()
    stopped = threading.Event()

    def work_off() -> None:
        for number in numbers:
            if stopped.is_set():
                return
            try:
                results[number] = work(todo[number])
            except BaseException as error:
                errors[number] = error
                stopped.set()

    def work_off_and_free() -> None:
        try:
            work_off()
        finally:
            _free_threads.release()

    try:
        ends = [start(work_off)] if _is_main() else []
        helpers = len(todo) if _is_main() else len(todo) - 1
        while len(ends) < helpers and _free_threads.acquire(blocking=False):
            ends.append(start(work_off_and_free))
        if not _is_main():
            work_off()
        for end in ends:
            _wait(end)
    finally:
        stopped.set()
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(todo))]


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def start(work: Callable[[], B]) -> Future[B]:
    """Run `work` in a thread that does not keep the process from ending; return its result."""
    future = Future[B]()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _wait(future: Future[B]) -> B:
    while wait([future], timeout=POLL_S).not_done:
        pass
    return future.result()
