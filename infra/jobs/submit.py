"""Submit a stage to the Ray cluster whose dashboard is at RAY_ADDRESS, and follow its log.

    RAY_ADDRESS=http://HEAD:8265 PIPELINE_ROOT=s3://bucket/artifacts \\
      python -m infra.jobs.submit run fast --data.source s3://bucket/mnist

Exit codes are those of the stage: `ray job submit` exits with 0 for a stopped job, and with 1 for
every failure. A connection that is lost does not end the job. Ctrl-C and SIGTERM stop it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from infra.jobs.follow import CONNECTION_LOST, exit_code, follow, stop
from infra.jobs.package import require_sendable, stage_wheels
from pipeline.artifacts.storage import redact
from pipeline.errors import ResourcesMissing, SettingError, UserError
from pipeline.process import environment, signals

STAGES = ("run", "preprocess", "train", "export", "evaluate", "promote", "score", "show")

TIMEOUT_S = 30
"""Time for the cluster to answer that it is there."""


def main() -> int:
    """Submit the stage of the command line; return its exit code, with `--no-wait` 0."""
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
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="the flags of the stage")
    return parser.parse_args()


def submit(arguments: argparse.Namespace) -> int:
    """Submit a stage, and follow it unless told not to; return the exit code."""
    client = connect()
    root = require_root(arguments.flags)
    require_no_keys([root, *arguments.flags])
    job = f"pipeline-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid4().hex[:6]}"
    entrypoint = shlex.join(["python", "-m", "pipeline", arguments.stage, *arguments.flags])
    runtime_env: dict[str, Any] = {"env_vars": {"PIPELINE_ROOT": root}}
    with TemporaryDirectory() as folder:
        if arguments.wheel:
            runtime_env |= stage_wheels(arguments.wheel, Path(folder))
        else:
            require_sendable(arguments.working_dir)
            runtime_env["working_dir"] = str(arguments.working_dir)
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env)
        except (*CONNECTION_LOST, ValueError) as error:
            reason, _, _ = (str(error).strip() or type(error).__name__).partition("\n")
            raise ResourcesMissing(f"The cluster did not take the job: {reason}") from None
        except KeyboardInterrupt:
            stop(client, job)
            raise
    if arguments.no_wait:
        print(job)
        return 0
    print(f"job {job}", file=sys.stderr)
    try:
        return exit_code(follow(client, job))
    except KeyboardInterrupt:
        stop(client, job)
        raise


def connect() -> JobSubmissionClient:
    """Connect to the cluster.

    Raise ResourcesMissing if it does not answer, refuses the token, or has another version of Ray.
    """
    address = os.environ.get("RAY_ADDRESS", "http://127.0.0.1:8265").rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise SettingError(
            f"RAY_ADDRESS is {address!r}, but jobs are submitted to the dashboard. Set it to "
            "http://HEAD:8265."
        )
    try:
        version = requests.get(f"{address}/api/version", timeout=TIMEOUT_S)
        client = JobSubmissionClient(address)
        client.list_jobs()
    except AuthenticationError:
        raise ResourcesMissing(
            f"The cluster at {address} does not accept "
            f"{'this token' if os.environ.get('RAY_AUTH_TOKEN') else 'requests without a token'}. "
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to those that it was started with."
        ) from None
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        raise ResourcesMissing(
            f"No cluster of Ray answers at RAY_ADDRESS {address!r} ({type(error).__name__}). Give "
            "the address of its dashboard, http://HEAD:8265. To reach it from elsewhere, start the "
            "head with --dashboard-host."
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


def require_no_keys(words: list[str]) -> None:
    """Raise SettingError if a word is a URI with keys: a job shows its command and environment."""
    for word in words:
        login = word.partition("://")[2].partition("?")[0].rpartition("@")[0]
        if login not in ("", "anonymous"):
            raise SettingError(
                f"{redact(word)!r} was given with keys of a bucket, which everyone who sees the "
                "cluster's jobs would see. Leave them out, and give the nodes the credentials."
            )


if __name__ == "__main__":
    sys.exit(signals.run(main, "interrupted"))
