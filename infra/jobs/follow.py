"""Follow a job to its end, over connections that may be lost."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.artifacts import threads
from pipeline.errors import ResourcesMissing
from pipeline.process import signals

SILENCE_S = 60
"""Time without an answer of the cluster, after which a job is no longer followed."""

POLL_S = 1

LOG_TIMEOUT_S = 30
"""Time without a line of the log, after which the status is asked for."""

ANSWER_TIMEOUT_S, STOP_TIMEOUT_S = 30, 10
"""Time for an answer about a job, and for the answer that it is being stopped."""

CONNECTION_LOST = (OSError, RuntimeError, aiohttp.ClientError, AuthenticationError)
"""The errors of Ray's client if the cluster does not answer, or answers with an error."""

T = TypeVar("T")


def follow(client: JobSubmissionClient, job: str) -> JobDetails:
    """Print the log of a job until it ends, and return what became of it.

    Raise ResourcesMissing if the cluster no longer answers, or no longer knows the job.
    """
    printed, answered, ended = 0, time.monotonic(), False
    while True:
        printed, is_complete = asyncio.run(print_log(client, job, printed))
        try:
            details: JobDetails = within(ANSWER_TIMEOUT_S, lambda: client.get_job_info(job))
        except CONNECTION_LOST as error:
            if "does not exist" in str(error):
                raise ResourcesMissing(
                    f"The cluster does not know job {job} any more; its head was started again."
                ) from None
            if time.monotonic() - answered > SILENCE_S:
                raise ResourcesMissing(
                    f"The cluster did not answer for {SILENCE_S} s ({type(error).__name__}), but "
                    f"the job may still run. Ask later: ray job status {job}"
                ) from None
        else:
            answered = time.monotonic()
            # The last lines may have come after the log was read.
            if details.status.is_terminal() and (is_complete or ended):
                return details
            ended = details.status.is_terminal()
        time.sleep(POLL_S)


async def print_log(client: JobSubmissionClient, job: str, printed: int) -> tuple[int, bool]:
    """Print what follows the first characters of a log.

    Return how many are printed now, and whether the log is complete. It is not if no line comes for
    LOG_TIMEOUT_S, or if the connection is lost.
    """
    seen = 0
    log = client.tail_job_logs(job)
    try:
        while True:
            text = await asyncio.wait_for(anext(log), LOG_TIMEOUT_S)
            seen += len(text)
            if seen > printed:
                print(text[printed - seen :], end="", flush=True)
                printed = seen
    except StopAsyncIteration:
        return printed, True
    except (TimeoutError, *CONNECTION_LOST):
        return printed, False


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call of Ray's client returns, which has no timeout of its own.

    Raise TimeoutError after the time.
    """
    return threads.start(call).result(seconds)


def exit_code(details: JobDetails) -> int:
    """Return the exit code of the driver, as a shell does; 1 for a job without one."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    code = details.driver_exit_code
    if details.status == JobStatus.STOPPED or not code:
        print(f"error: the job is {details.status}: {details.message}", file=sys.stderr)
    if details.status == JobStatus.STOPPED:
        return signals.EXIT_CODE
    return 128 - code if code and code < 0 else code or 1


def stop(client: JobSubmissionClient, job: str) -> None:
    """Stop a job, and say whether that was possible."""
    try:
        within(STOP_TIMEOUT_S, lambda: client.stop_job(job))
    except CONNECTION_LOST:
        print(f"the job could not be stopped: ray job stop {job}", file=sys.stderr)
    else:
        print(f"the job is stopped: {job}", file=sys.stderr)
