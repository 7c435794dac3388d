"""The whole run on several nodes: the artifacts of one node, two at once, and bad storage."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from infra.testbed.cluster import Cluster
from infra.testbed.namespaces import Node
from tests.cluster.faults import caused, fill_disk, note, slow
from tests.support.s3 import S3
from tests.support.sample_data import write_source

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]

PIPELINE = (sys.executable, "-m", "pipeline")

BUSY_S, CUT_S = 30, 8

READ_MANIFESTS = """
import json, sys
from pipeline.artifacts.storage import Storage
storage = Storage(sys.argv[1])
names = ("manifest.json", "evaluation.json")
manifests = [path for path in storage.files("") if path.endswith(names)]
print(json.dumps({path: json.loads(storage.read(path)) for path in manifests}))
"""


def run(root: object, source: Path, *flags: object) -> tuple[object, ...]:
    """Return the command of a whole run that is short."""
    data = ("--data.name", "bars", "--data.source", source, "--data.rows-per-shard", 50)
    training = ("--train.epochs", 6, "--train.batch-size", 20)
    return (*PIPELINE, "run", "fast", "--root", root, *data, *training, *flags)


def read_until(process: subprocess.Popen[str], stage: str) -> str:
    """Return what a run prints until this stage begins."""
    assert process.stderr
    printed = ""
    while stage not in printed.splitlines():
        line = process.stderr.readline()
        assert line, printed
        printed += line
    return printed


def manifests(testbed: Cluster, root: object) -> dict[str, Any]:
    """Return the manifests below a storage root, by path, without what depends on speed."""
    done = testbed.run(sys.executable, "-c", READ_MANIFESTS, root)
    assert not done.returncode, done.stderr
    by_path: dict[str, Any] = json.loads(done.stdout)
    for manifest in by_path.values():
        manifest.pop("metrics", None) if manifest["kind"] == "run" else None
    return by_path


@pytest.fixture
def source(testbed: Cluster, shared: Path) -> Path:
    return write_source(shared / "source")


@pytest.mark.parametrize("storage", ["a shared folder", "S3"])
def test_a_run_on_two_nodes_gives_the_artifacts_of_one(
    testbed: Cluster, shared: Path, bucket: S3, source: Path, storage: str
) -> None:
    """Data and scores are the same bytes; weights are those of the run with the same workers."""
    one, two = (bucket.uri(n) if storage == "S3" else shared / n for n in ("one", "two"))
    alone = subprocess.run(
        list(map(str, run(shared / "alone", source, "--train.num-workers", 2))),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not alone.returncode, alone.stderr
    for root in (one, two):
        done = testbed.run(*run(root, source, "--train.num-workers", 2))
        assert not done.returncode, done.stderr
        assert "Traceback" not in done.stderr
    assert manifests(testbed, one) == manifests(testbed, two)
    local, remote = manifests(testbed, shared / "alone"), manifests(testbed, two)
    datasets = [path for path in local if path.startswith("datasets/")]
    assert datasets
    assert [local[path] for path in datasets] == [remote[path] for path in datasets]


@pytest.mark.parametrize("storage", ["a shared folder", "S3"])
def test_two_runs_at_once_on_one_root_leave_one_set_of_artifacts(
    testbed: Cluster, shared: Path, bucket: S3, source: Path, storage: str
) -> None:
    """One of them may be told that the other is at work."""
    root = bucket.uri("at-once") if storage == "S3" else shared / "root"
    command = run(root, source, "--wait", 120)
    started = [testbed.popen(*command, stderr=subprocess.PIPE) for _ in range(2)]
    codes = list[int]()
    for process in started:
        _, printed = process.communicate(timeout=240)
        codes.append(process.returncode)
        assert "Traceback" not in printed
        if process.returncode:
            assert printed.splitlines()[-1].startswith("error: Another process ")
    assert sorted(codes) in ([0, 0], [0, 2])
    first = manifests(testbed, root)
    kinds = [manifest["kind"] for manifest in first.values()]
    assert sorted(kinds) == ["dataset", "evaluation", "model", "run", "scores"]
    repeated = testbed.run(*command)
    assert repeated.returncode == 0, repeated.stderr
    assert manifests(testbed, root) == first
    note("run", f"another on the same root, {storage}", f"exit codes {codes}, one set of artifacts")


def test_storage_that_a_node_does_not_see_is_told_before_anything_runs(
    testbed: Cluster, source: Path
) -> None:
    """The head has a /tmp of its own."""
    done = testbed.run(*run("/tmp/root", source))
    assert done.returncode == 2
    assert "of 3 nodes of the cluster" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@contextmanager
def disturbed(testbed: Cluster, bucket: S3, mode: Path) -> Iterator[S3]:
    """Yield the server behind a proxy at the switch that obeys the file `mode`."""
    mode.write_text("good")
    command = (sys.executable, "-m", "tests.support.slow_server", bucket.host, bucket.port, mode)
    with testbed.switch.popen(*command, cwd=REPOSITORY, stdout=subprocess.PIPE) as proxy:
        try:
            assert proxy.stdout
            yield S3(int(proxy.stdout.readline()), bucket.host)
        finally:
            proxy.kill()


@pytest.mark.parametrize("stage", ["preprocess", "train", "score"])
def test_a_server_that_is_busy_for_30_s_only_delays_a_run(
    testbed: Cluster, shared: Path, bucket: S3, source: Path, stage: str
) -> None:
    with disturbed(testbed, bucket, shared / "mode") as server:
        command = run(server.uri(f"busy-{stage}"), source)
        with testbed.popen(*command, stderr=subprocess.PIPE) as process:
            printed = read_until(process, stage)
            (shared / "mode").write_text("busy")
            with suppress(subprocess.TimeoutExpired):
                process.wait(BUSY_S)
            (shared / "mode").write_text("good")
            _, rest = process.communicate(timeout=240)
            assert process.returncode == 0, printed + rest
    assert "Traceback" not in printed + rest
    note(stage, f"storage answers 503 for {BUSY_S} s", "finished")


@pytest.mark.parametrize("stage", ["export", "evaluate"])
def test_a_cable_that_is_cut_for_some_seconds_only_delays_a_stage_of_the_head(
    testbed: Cluster, bucket: S3, source: Path, stage: str
) -> None:
    command = run(bucket.uri(f"cut-{stage}"), source)
    with testbed.popen(*command, stderr=subprocess.PIPE) as process:
        printed = read_until(process, stage)
        testbed.head.cut()
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(CUT_S)
        finally:
            testbed.head.restore()
        _, rest = process.communicate(timeout=240)
        assert process.returncode == 0, printed + rest
    assert "Traceback" not in printed + rest
    note(stage, f"the head's cable is cut for {CUT_S} s", "finished")


@pytest.mark.parametrize("fault", [slow, fill_disk])
def test_stages_of_the_head_finish_on_a_slow_cable_or_a_full_disk(
    testbed: Cluster, bucket: S3, source: Path, fault: Callable[[Node], None]
) -> None:
    """From the beginning of export on."""
    command = run(bucket.uri("root"), source)
    with testbed.popen(*command, stderr=subprocess.PIPE) as process:
        printed = read_until(process, "export")
        with caused(testbed, fault, testbed.head, slowed_s=30):
            _, rest = process.communicate(timeout=240)
        assert process.returncode == 0, printed + rest
    assert "evaluate" in rest.splitlines()
    assert "Traceback" not in printed + rest
    note("export", f"{fault.__name__}, of the head, and in evaluate", "finished")


def test_a_server_that_takes_half_a_second_for_a_request_is_waited_for(
    testbed: Cluster, shared: Path, bucket: S3, source: Path
) -> None:
    with disturbed(testbed, bucket, shared / "mode") as server:
        (shared / "mode").write_text("slow")
        started = time.monotonic()
        done = testbed.run(*run(server.uri("slow"), source))
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - started
    note("run", "storage takes 500 ms longer for a request", f"finished in {seconds:.0f} s")
