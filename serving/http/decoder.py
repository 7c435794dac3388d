"""A process beside the replica for work that would stop its event loop: large JSON, image files.

Their parsers hold Python's lock, so a thread would stop the loop as well. If the process dies, for
example because an image takes all memory, one request fails, and the replica does not.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from serving.errors import DecodingFailed, Overloaded, RequestError

MAX_WAITING = 32
"""Requests that the process works on or that wait for it."""

TIMEOUT_S = 20
"""Time for one request, after which the process is killed. HAProxy answers for it after 30 s."""

FAILED = (
    "The server could not decode this request in time or in memory. Send smaller images, or fewer "
    "in a request."
)

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the signal that the kernel sends when the parent ends."""

P = ParamSpec("P")
R = TypeVar("R")


class Decoder:
    """Calls functions in the process, one after the other; belongs to one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._turn = asyncio.Lock()
        self._worker: _Worker | None = None
        self._waiting = 0

    async def start(self) -> None:
        """Start the process, so that the first request does not wait for its imports."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._start)

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what a function of a module returns, called in the process.

        Raise its RequestError, Overloaded if too many requests wait, DecodingFailed if the process
        dies or takes longer than TIMEOUT_S, and RuntimeError with the trace of any other error.
        """
        if self._waiting >= MAX_WAITING:
            raise Overloaded(
                f"The server is busy: {self._waiting} requests wait to be decoded. Send the "
                "request again in a second."
            )
        self._waiting += 1
        try:
            # A request that is cancelled here takes its body with it.
            await self._turn.acquire()
            call = asyncio.ensure_future(self._call_in_thread(function, args, kwargs))
            # If the request is cancelled from now on, the next one waits until the process is done.
            return await asyncio.shield(call)
        finally:
            self._waiting -= 1

    async def _call_in_thread(self, function: Callable[..., R], args: Any, kwargs: Any) -> R:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._call, function, args, kwargs)
        finally:
            self._turn.release()

    def _start(self) -> _Worker:
        self._worker = _Worker()
        return self._worker

    def _call(self, function: Callable[..., R], args: Any, kwargs: Any) -> R:
        worker = self._worker
        if worker is None or worker.process.poll() is not None:
            # The kernel may have killed an idle one, as it is the first to go if memory is short.
            worker = self._start()
        timer = threading.Timer(TIMEOUT_S, worker.process.kill)
        timer.start()
        try:
            worker.connection.send((function, args, kwargs))
            result, error = worker.connection.recv()
        except (OSError, EOFError):
            self._worker = None
            raise DecodingFailed(FAILED) from None
        finally:
            timer.cancel()
        if error:
            raise error
        value: R = result
        return value


class _Worker:
    """The process, and the connection to it. It is killed when nothing refers to it."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving.http.decoder", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        weakref.finalize(self, _end, self.process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def serve(connection: Connection) -> None:
    """Call the functions that the replica sends, until it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C reaches all processes of a terminal, but the replica ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        # If memory is short, the kernel kills this process first.
        Path("/proc/self/oom_score_adj").write_text("1000")
    # All that the functions import.
    import serving.http.forms  # noqa: F401

    with suppress(EOFError):
        while True:
            function, args, kwargs = connection.recv()
            reply: tuple[object, Exception | None]
            try:
                reply = function(*args, **kwargs), None
            except RequestError as error:
                reply = None, error
            except MemoryError:
                reply = None, DecodingFailed(FAILED)
            except Exception:
                reply = None, RuntimeError(traceback.format_exc())
            connection.send(reply)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
