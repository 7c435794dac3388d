"""The process that decodes: it answers, it may die, and the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serving.errors import DecodingFailed, ImageInvalid, Overloaded
from serving.http import decoder
from serving.http.decoder import MAX_WAITING, Decoder
from serving.protocol.v2_request import parse_json
from tests.support.processes import wait_for


def run(scenario: Callable[[Decoder], Awaitable[None]]) -> None:
    async def live() -> None:
        own = Decoder()
        await own.start()
        await scenario(own)

    asyncio.run(live())


def refuse() -> None:
    raise ImageInvalid("The image is blank.")


def fail() -> None:
    raise KeyError("inner")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_and_errors_come_back() -> None:
    async def scenario(own: Decoder) -> None:
        assert await own.run(os.getpid) != os.getpid()
        with pytest.raises(ImageInvalid, match=r"The image is blank\."):
            await own.run(refuse)
        with pytest.raises(RuntimeError, match="KeyError"):
            await own.run(fail)

    run(scenario)


def test_a_request_that_kills_the_process_fails_alone() -> None:
    async def scenario(own: Decoder) -> None:
        dying, living = await asyncio.gather(
            own.run(die), own.run(os.getpid), return_exceptions=True
        )
        assert isinstance(dying, DecodingFailed)
        assert isinstance(living, int)

    run(scenario)


def test_a_process_that_was_killed_meanwhile_is_replaced() -> None:
    """As by a kernel that is short of memory."""

    async def scenario(own: Decoder) -> None:
        pid = await own.run(os.getpid)
        os.kill(pid, signal.SIGKILL)
        while is_alive(pid) and own._worker and own._worker.process.poll() is None:
            await asyncio.sleep(0.01)
        assert await own.run(os.getpid) != pid

    run(scenario)


def test_a_cancelled_request_leaves_no_body_behind() -> None:
    async def scenario(own: Decoder) -> None:
        busy = asyncio.ensure_future(own.run(time.sleep, 1))
        await asyncio.sleep(0.1)
        body = Body([1])
        gone = weakref.ref(body)
        waiting = asyncio.ensure_future(own.run(len, body))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.wait([waiting])
        del body, waiting
        gc.collect()
        assert gone() is None
        assert not busy.done()
        await busy
        await own.run(os.getpid)

    run(scenario)


class Body(list[int]):
    """A list to which there can be a weak reference."""


def test_a_request_that_takes_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(own: Decoder) -> None:
        with pytest.raises(DecodingFailed):
            await own.run(time.sleep, 60)
        await own.run(os.getpid)

    monkeypatch.setattr(decoder, "TIMEOUT_S", 1)
    run(scenario)


def test_only_so_many_requests_wait() -> None:
    async def scenario(own: Decoder) -> None:
        waiting = [asyncio.ensure_future(own.run(os.getpid)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=f"{MAX_WAITING} requests wait to be decoded"):
            await own.run(os.getpid)
        await asyncio.gather(*waiting)
        await own.run(os.getpid)

    run(scenario)


def test_the_process_ends_with_its_decoder() -> None:
    async def scenario(own: Decoder) -> None:
        pids.append(await own.run(os.getpid))

    pids = list[int]()
    run(scenario)
    wait_for(lambda: not is_alive(pids[0]))


def test_the_event_loop_goes_on_while_json_is_parsed() -> None:
    """Parse lists that take a second, and take the time from one turn of the loop to the next."""

    async def scenario(own: Decoder) -> None:
        started = time.monotonic()
        parsing = asyncio.ensure_future(own.run(length_of, text))
        gaps, last = list[float](), started
        while not parsing.done():
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
        assert await parsing == count
        assert max(gaps) < (last - started) / 4

    count = 3_000_000
    text = json.dumps([[]] * count).encode()
    run(scenario)


def length_of(text: bytes) -> int:
    parsed: list[Any] = parse_json(text)
    return len(parsed)
