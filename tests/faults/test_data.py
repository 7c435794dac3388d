"""SIGKILL of preprocessing and of scoring at random moments, and the same command again.

KILLS says how many times each is killed, two at once, each with an output of its own; a
reader looks at each output all the while.
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
from tests.support.processes import Command, pipeline

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "20"))
LANES = 2


@pytest.fixture
def env(ray_session: None) -> Iterator[dict[str, str]]:
    """The way to a Ray that outlives the commands, so that none waits for one of its own."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": LANES})
    token = os.environ["RAY_AUTH_TOKEN"]
    yield {"RAY_ADDRESS": cluster.address, "RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"}
    cluster.shutdown()


class Reader(threading.Thread):
    """Looks for the manifest, and where there is one checks all that it lists."""

    def __init__(self, output: Path, kind: type[Manifest]) -> None:
        super().__init__()
        self.output, self.kind = output, kind
        self.looks, self.wrong, self.done = 0, list[str](), threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.looks += 1
            manifest = find(Storage(str(self.output)), "", self.kind)
            for entry in manifest.files if manifest else ():
                path = self.output / entry.path
                if hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
                    self.wrong.append(entry.path)


@contextmanager
def watched(output: Path, kind: type[Manifest]) -> Iterator[Reader]:
    reader = Reader(output, kind)
    reader.start()
    yield reader
    reader.done.set()
    reader.join()


def shards(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}


def contents(output: Path) -> dict[str, bytes]:
    """The manifest, and what it lists; the lock's file and what was cut short stand beside them."""
    names = [path for path in output.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(output)): path.read_bytes() for path in names}


def kill_and_repeat(command: Command, output: Path, kind: type[Manifest], seed: int) -> str:
    started = time.monotonic()
    assert command.run().returncode == 0
    whole_s, expected = time.monotonic() - started, contents(output)
    shutil.rmtree(output)
    moments, kills, finished, spared = random.Random(seed), 0, 0, 0
    kept = dict[Path, int]()
    while kills < KILLS // LANES or not (output / "manifest.json").exists():
        anew, started = not kept, time.monotonic()
        with watched(output, kind) as reader:
            with command.started() as process:
                last = kills == KILLS // LANES
                try:
                    process.wait(None if last else moments.uniform(0.3, 1) * whole_s)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                process.wait()
            assert process.returncode in (0, -signal.SIGKILL)
        assert not reader.wrong
        # What was finished is not done again.
        found = shards(output)
        assert {path: found.get(path) for path in kept} == kept
        spared += len(kept)
        kept = found
        if process.returncode == 0:
            finished += 1
            if anew:
                # The other lane was slower when the first time was taken.
                whole_s = min(whole_s, time.monotonic() - started)
            assert contents(output) == expected
            if kills < KILLS // LANES:
                shutil.rmtree(output)
                kept = {}
    assert contents(output) == expected
    return f"killed {kills} times, finished {finished} times; {spared} files not made again"


def in_lanes(work: Callable[[int], str]) -> None:
    with ThreadPoolExecutor(LANES) as lanes:
        print(*lanes.map(work, range(LANES)), sep="\n")


def test_preprocessing_goes_on_where_it_was(
    env: dict[str, str], source: Path, tmp_path: Path
) -> None:
    flags = ("--data.name", "bars", "--data.source", source, "--data.rows-per-shard", 5)

    def lane(number: int) -> str:
        root = tmp_path / str(number)
        command = pipeline("preprocess", "--root", root, *flags, **env)
        output = root / "datasets" / command.run().stdout.strip()
        shutil.rmtree(output)
        return kill_and_repeat(command, output, DatasetManifest, number)

    in_lanes(lane)


def test_scoring_goes_on_where_it_was(
    env: dict[str, str], artifacts: Artifacts, tmp_path: Path
) -> None:
    split = f"{artifacts.dataset.ref}/train"
    flags = ("--model", artifacts.model.ref, "--input", split, "--rows-per-shard", 4)

    def lane(number: int) -> str:
        output = tmp_path / str(number)
        flags_of = (*flags, "--output", output, "--num-workers", 1)
        command = pipeline("score", "--root", artifacts.root, *flags_of, **env)
        return kill_and_repeat(command, output, ScoresManifest, number)

    in_lanes(lane)
