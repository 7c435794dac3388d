"""Submit a stage to the Ray cluster whose dashboard is at RAY_ADDRESS, and follow its log.

    RAY_ADDRESS=http://HEAD:8265 PIPELINE_ROOT=s3://bucket/artifacts \\
      python -m infra.jobs.submit run fast --data.source s3://bucket/mnist

Exit codes are those of the stage: `ray job submit` exits with 0 for a stopped job, and with 1 for
every failure. A connection that is lost does not end the job. Ctrl-C and SIGTERM stop it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from infra.jobs.package import require_sendable, stage_wheels
from pipeline.errors import ResourcesMissing, SettingError, UserError
from pipeline.process import environment, signals

SILENCE_S = 60
"""Time without an answer of the cluster, after which a job is no longer followed."""

POLL_S = 1

LOG_TIMEOUT_S = 30
"""Time without a line of the log, after which the status is asked for."""

CONNECTION_LOST = (OSError, RuntimeError, aiohttp.ClientError)
"""Raised by Ray's client if the cluster does not answer, or answers with an error."""


def main() -> int:
    """Submit the stage of the command line; return its exit code, or 0 without `--no-wait`."""
    try:
        environment.prepare()
        return submit(parse())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse() -> argparse.Namespace:
    """Return the arguments. Exit with 2 if they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m infra.jobs.submit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and return")
    parser.add_argument(
        "--working-dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder that is sent and that the job runs in (default: the current one)",
    )
    parser.add_argument(
        "--wheel",
        type=Path,
        action="append",
        metavar="FILE",
        help="in place of a folder: install this wheel of the project, with its pins, on the nodes",
    )
    parser.add_argument("stage", help="run, preprocess, train, export, evaluate, promote or score")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="the flags of the stage")
    return parser.parse_args()


def submit(arguments: argparse.Namespace) -> int:
    """Submit a stage, and follow it unless told not to; return the exit code."""
    client = connect()
    root = require_root(arguments.flags)
    job = f"pipeline-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid4().hex[:6]}"
    entrypoint = shlex.join(["python", "-m", "pipeline", arguments.stage, *arguments.flags])
    runtime_env: dict[str, Any] = {"env_vars": {"PIPELINE_ROOT": root}}
    with TemporaryDirectory() as folder:
        if arguments.wheel:
            runtime_env |= stage_wheels(arguments.wheel, Path(folder))
        else:
            require_sendable(arguments.working_dir)
            runtime_env["working_dir"] = str(arguments.working_dir)
        client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env)
    if arguments.no_wait:
        print(job)
        return 0
    print(f"job {job}", file=sys.stderr)
    try:
        return exit_code(follow(client, job))
    except KeyboardInterrupt:
        client.stop_job(job)
        raise


def connect() -> JobSubmissionClient:
    """Connect to the cluster.

    Raise ResourcesMissing if it does not answer, refuses the token, or has another version of Ray.
    """
    address = os.environ.get("RAY_ADDRESS", "http://127.0.0.1:8265")
    if not address.startswith(("http://", "https://")):
        raise SettingError(
            f"RAY_ADDRESS is {address!r}, but jobs are submitted to the dashboard. Set it to "
            "http://HEAD:8265."
        )
    try:
        version = requests.get(f"{address}/api/version", timeout=LOG_TIMEOUT_S)
        client = JobSubmissionClient(address)
        client.list_jobs()
    except AuthenticationError:
        raise ResourcesMissing(
            f"The cluster at {address} does not accept "
            f"{'this token' if os.environ.get('RAY_AUTH_TOKEN') else 'requests without a token'}. "
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to those that it was started with."
        ) from None
    except (OSError, RuntimeError) as error:
        raise ResourcesMissing(
            f"No cluster answers at RAY_ADDRESS {address!r} ({type(error).__name__}). Give the "
            "address of its dashboard, http://HEAD:8265, which the head must be started with "
            "--dashboard-host to reach from elsewhere."
        ) from None
    running = version.json().get("ray_version", "") if version.ok else ""
    if running and minor(running) != minor(ray.__version__):
        raise ResourcesMissing(
            f"The cluster at {address} runs Ray {running}, but this project is for Ray "
            f"{minor(ray.__version__)}. Start the cluster with that, or use another release."
        )
    return client


def minor(version: str) -> str:
    """Return MAJOR.MINOR of a version."""
    return ".".join(version.split(".")[:2])


def require_root(flags: list[str]) -> str:
    """Return the storage root. Raise SettingError if other nodes cannot see it."""
    root = os.environ.get("PIPELINE_ROOT", "")
    for number, flag in enumerate(flags):
        if flag == "--root" and number + 1 < len(flags):
            root = flags[number + 1]
        elif flag.startswith("--root="):
            root = flag.removeprefix("--root=")
    if not root:
        raise SettingError(
            "No storage root. Set PIPELINE_ROOT to a folder or URI that all nodes see."
        )
    if "://" not in root and not os.path.isabs(root):
        raise SettingError(
            f"The storage root {root!r} is relative: it would be deleted with the folder of the "
            "job. Give an absolute path or a URI that all nodes see."
        )
    return root


def follow(client: JobSubmissionClient, job: str) -> JobDetails:
    """Print the log of a job until it ends, and return what became of it.

    Raise ResourcesMissing if the cluster no longer answers.
    """
    printed, answered = 0, time.monotonic()
    while True:
        try:
            printed = asyncio.run(print_log(client, job, printed))
            details = client.get_job_info(job)
            if details.status.is_terminal():
                return details
            answered = time.monotonic()
        except CONNECTION_LOST as error:
            if time.monotonic() - answered > SILENCE_S:
                raise ResourcesMissing(
                    f"The cluster did not answer for {SILENCE_S} s ({type(error).__name__}), but "
                    f"the job may still run. Ask later: ray job status {job}"
                ) from None
        time.sleep(POLL_S)


async def print_log(client: JobSubmissionClient, job: str, printed: int) -> int:
    """Print what follows the first characters of a log; return how many are printed now.

    It ends with the log, if no line comes for LOG_TIMEOUT_S, or if the connection is lost.
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
    except (StopAsyncIteration, TimeoutError, *CONNECTION_LOST):
        return printed


def exit_code(details: JobDetails) -> int:
    """Return the exit code of the driver, and 1 for a job without one."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.driver_exit_code is None or details.status == JobStatus.STOPPED:
        print(f"error: the job is {details.status}: {details.message}", file=sys.stderr)
    return details.driver_exit_code or 1


if __name__ == "__main__":
    sys.exit(signals.run(main, "interrupted; the job is stopped"))
