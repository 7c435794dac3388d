"""Bounds of a request: the memory and the time of its body, and the presence of its client."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

from serving.errors import Overloaded

WATCH_S = 0.05
"""Time for an answer before it is watched whether the client leaves."""

LOOK_S = 0.5
"""Time between two looks while a body arrives."""


class BodyMemory:
    """The bytes of bodies that a replica holds."""

    def __init__(self, max_bytes: int) -> None:
        self.free = max_bytes


class RequestMemory:
    """The share of it that one request has."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._taken = 0

    def take(self, size: int) -> None:
        """Take so many bytes in all. Raise Overloaded if other requests hold too many."""
        more = size - self._taken
        if more > self._memory.free:
            raise Overloaded(
                "The server is busy: the bodies of other requests take all memory that it has for "
                "them. Send the request again in a second."
            )
        self._memory.free -= more
        self._taken = size

    def release(self) -> None:
        """Give back all."""
        self.take(0)


class ClientWatch:
    """Cancels a request whose body does not arrive in time, or whose client leaves.

    So nothing more is computed for it. Most requests are answered before its first look.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._request = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._arrived = False
        self.late = False
        self.left = False

    def start(self, timeout_s: float) -> None:
        """Set `late` and cancel the request unless its body arrives in so many seconds."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(WATCH_S, timeout_s), self._look, timeout_s - WATCH_S)

    def body_arrived(self) -> None:
        """From now on, set `left` and cancel the request if its client leaves."""
        self._arrived = True

    def stop(self) -> None:
        """End the watch."""
        if self._timer:
            self._timer.cancel()
        if self._task:
            self._task.cancel()

    def _look(self, left_s: float) -> None:
        if self._arrived:
            self._task = asyncio.create_task(self._wait())
        elif left_s <= 0:
            self.late = True
            self._cancel()
        else:
            loop = asyncio.get_running_loop()
            # Look again soon: the body may arrive, and its client leave.
            pause_s = min(left_s, LOOK_S)
            self._timer = loop.call_later(pause_s, self._look, left_s - pause_s)

    async def _wait(self) -> None:
        if (await self._receive())["type"] == "http.disconnect":
            self.left = True
            self._cancel()

    def _cancel(self) -> None:
        if self._request:
            self._request.cancel()
