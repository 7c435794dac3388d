"""Kill preprocessing and scoring at random moments (SIGKILL), and run the same command again.

The environment variable KILLS is the number of kills of each. Two lanes run at once, each with its
own output, and a reader checks each output all the time.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pipeline.artifacts.commit import find
from pipeline.artifacts.manifests import DatasetManifest, Manifest, ScoresManifest
from pipeline.artifacts.storage import Storage
from tests.conftest import Artifacts
from tests.support.folders import contents
from tests.support.processes import Command, pipeline

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "20"))
LANES = 2


@pytest.fixture
def env(ray_session: None) -> Iterator[dict[str, str]]:
    """Return the address of a cluster that outlives the commands, so that none has to start Ray."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": LANES})
    token = os.environ["RAY_AUTH_TOKEN"]
    yield {"RAY_ADDRESS": cluster.address, "RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"}
    cluster.shutdown()


class Reader(threading.Thread):
    """A thread that checks, whenever a manifest exists, the digests of all files that it lists."""

    def __init__(self, output: Path, kind: type[Manifest]) -> None:
        super().__init__()
        self.output, self.kind = output, kind
        self.damaged = list[str]()
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.02):
            manifest = find(Storage(str(self.output)), "", self.kind)
            for entry in manifest.files if manifest else ():
                path = self.output / entry.path
                if hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
                    self.damaged.append(entry.path)


@contextmanager
def watched(output: Path, kind: type[Manifest]) -> Iterator[Reader]:
    reader = Reader(output, kind)
    reader.start()
    yield reader
    reader.stopped.set()
    reader.join()


def finished(output: Path, expected: dict[str, bytes]) -> dict[Path, int]:
    """Return the modification times of the files of finished shards.

    A shard has a file for each split of its rows; all of these end with its number and a digest.
    """
    numbers = {path: path.rsplit("-", 2)[1] for path in expected if path.endswith(".parquet")}
    missing = {number for path, number in numbers.items() if not (output / path).exists()}
    paths = [output / path for path, number in numbers.items() if number not in missing]
    return {path: path.stat().st_mtime_ns for path in paths}


def kill_and_repeat(command: Command, output: Path, kind: type[Manifest], seed: int) -> str:
    """Kill the command at random moments until it has been killed often enough and is complete.

    Every complete output must equal that of an undisturbed run, and no finished shard is rewritten.
    """
    started = time.monotonic()
    assert command.run().returncode == 0
    duration_s = time.monotonic() - started
    expected = contents(output)
    shutil.rmtree(output)
    moments = random.Random(seed)
    kills = completions = reused = 0
    kept = dict[Path, int]()
    while kills < KILLS // LANES or not (output / "manifest.json").exists():
        from_scratch = not kept
        started = time.monotonic()
        with watched(output, kind) as reader:
            with command.started() as process:
                last = kills == KILLS // LANES
                try:
                    process.wait(None if last else moments.uniform(0.3, 1) * duration_s)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                process.wait()
            assert process.returncode in (0, -signal.SIGKILL)
        assert not reader.damaged
        # Finished shards are not written again.
        current = finished(output, expected)
        assert {path: current.get(path) for path in kept} == kept
        reused += len(kept)
        kept = current
        if process.returncode == 0:
            completions += 1
            if from_scratch:
                # The first measurement may be too long, as the other lane was starting up.
                duration_s = min(duration_s, time.monotonic() - started)
            assert contents(output) == expected
            if kills < KILLS // LANES:
                shutil.rmtree(output)
                kept = {}
    assert contents(output) == expected
    return f"killed {kills} times, completed {completions} times; {reused} shards reused"


def in_lanes(work: Callable[[int], str]) -> None:
    with ThreadPoolExecutor(LANES) as lanes:
        print(*lanes.map(work, range(LANES)), sep="\n")


def test_killed_preprocessing_resumes(env: dict[str, str], source: Path, tmp_path: Path) -> None:
    flags = ("--data.name", "bars", "--data.source", source, "--data.rows-per-shard", 5)

    def lane(number: int) -> str:
        root = tmp_path / str(number)
        command = pipeline("preprocess", "--root", root, *flags, **env)
        output = root / "datasets" / command.run().stdout.strip()
        shutil.rmtree(output)
        return kill_and_repeat(command, output, DatasetManifest, number)

    in_lanes(lane)


def test_killed_scoring_resumes(env: dict[str, str], artifacts: Artifacts, tmp_path: Path) -> None:
    split = f"{artifacts.dataset.ref}/train"
    flags = ("--model", artifacts.model.ref, "--input", split, "--rows-per-shard", 4)

    def lane(number: int) -> str:
        output = tmp_path / str(number)
        lane_flags = (*flags, "--output", output, "--num-workers", 1)
        command = pipeline("score", "--root", artifacts.root, *lane_flags, **env)
        return kill_and_repeat(command, output, ScoresManifest, number)

    in_lanes(lane)
