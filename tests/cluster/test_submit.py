"""Reaching a cluster: what is told at once, and connections that are lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from ray.job_submission import JobSubmissionClient

from infra.jobs import follow
from pipeline.errors import ResourcesMissing
from tests.support import cluster_head, tcp_proxy
from tests.support.cluster_head import BIN, TOKEN, Head
from tests.support.processes import Command, wait_for
from tests.support.tcp_proxy import Proxy

pytestmark = pytest.mark.cluster

LINES = 8


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with cluster_head.started(tmp_path_factory.mktemp("root")) as started:
        yield started


@pytest.fixture
def proxy(head: Head) -> Iterator[Proxy]:
    with tcp_proxy.started(int(head.address.rpartition(":")[2])) as started:
        yield started


@pytest.fixture
def slow_stage(tmp_path: Path) -> Path:
    """Return a working folder whose `pipeline` prints a line each second."""
    folder = tmp_path / "pipeline"
    folder.mkdir()
    (folder / "__main__.py").write_text(
        "import time\n"
        f"for number in range({LINES}):\n"
        "    print('line', number, flush=True)\n"
        "    time.sleep(1)\n"
    )
    return tmp_path


def error(command: Command) -> str:
    """Return the one line of a command that fails at once."""
    completed = command.run()
    assert completed.returncode == 2, completed.stderr
    lines = completed.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in completed.stderr
    return lines[-1]


def test_a_stage_that_fails_gives_its_exit_code(head: Head) -> None:
    completed = head.submit("run", "fast", "--data.name", "x", "--data.source", "/nowhere").run()
    assert completed.returncode == 2
    assert "error: --data.source '/nowhere' " in completed.stdout
    assert head.jobs()[-1]["status"] == "FAILED"


def test_a_job_that_nobody_waits_for_is_asked_about_and_stopped(
    head: Head, slow_stage: Path
) -> None:
    submitted = head.submit("--no-wait", "--working-dir", slow_stage, "train", "--x", "a b").run()
    assert submitted.returncode == 0, submitted.stderr
    (job,) = submitted.stdout.split()

    def ray(verb: str) -> str:
        return head.command(BIN / "ray", "job", verb, job).run().stdout

    wait_for(lambda: "line 1" in ray("logs"))
    assert "RUNNING" in ray("status")
    assert head.jobs()[-1]["entrypoint"] == "python -m pipeline train --x 'a b'"
    ray("stop")
    assert "was stopped" in ray("status")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, "does not accept this token"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "disabled"}, "requests without a token"),
    ],
)
def test_a_wrong_or_missing_token_is_told(head: Head, token: dict[str, str], message: str) -> None:
    assert message in error(head.submit("run", "fast", **token))


def test_an_address_or_a_root_that_cannot_work_is_told(head: Head, tmp_path: Path) -> None:
    for env, message in (
        ({"RAY_ADDRESS": head.gcs}, "Set it to http://HEAD:8265"),
        ({"RAY_ADDRESS": "http://127.0.0.1:9"}, "No cluster of Ray answers"),
        ({"PIPELINE_ROOT": ""}, "No storage root"),
        ({"PIPELINE_ROOT": "artifacts"}, "is relative"),
    ):
        assert message in error(head.submit("run", "fast", **env))
    assert "is relative" in error(head.submit("train", "--root=artifacts"))
    keys = error(head.submit("run", "fast", "--data.source", "s3://key:secret@bucket/mnist"))
    assert "'s3://bucket/mnist' was given with keys" in keys
    assert "is not a folder" in error(head.submit("--working-dir", tmp_path / "none", "run"))


def test_a_working_folder_that_is_too_big_is_told_before_it_is_sent(
    head: Head, tmp_path: Path
) -> None:
    with (tmp_path / "dataset.bin").open("wb") as file:
        file.truncate(600 << 20)
    message = error(head.submit("--working-dir", tmp_path, "run"))
    assert "600 MiB, and Ray sends at most 512: dataset.bin (600 MiB)" in message
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("*.bin")
    assert head.submit("--no-wait", "--working-dir", tmp_path, "run").run().returncode == 0


def test_a_lost_connection_is_no_failed_job(head: Head, proxy: Proxy, slow_stage: Path) -> None:
    command = head.submit("--working-dir", slow_stage, "run", RAY_ADDRESS=proxy.address)
    with command.started() as process:
        assert process.stdout
        printed = process.stdout.readline()
        for _ in range(2):
            proxy.cut()
            proxy.restore()
            printed += process.stdout.readline()
        printed += process.stdout.read()
        assert process.wait() == 0
    shown = [line for line in printed.splitlines() if line.startswith("line")]
    assert shown == [f"line {number}" for number in range(LINES)]


def test_the_end_of_a_log_is_printed_if_the_connection_was_lost_before(
    head: Head, proxy: Proxy, slow_stage: Path
) -> None:
    command = head.submit("--working-dir", slow_stage, "run", RAY_ADDRESS=proxy.address)
    with command.started() as process:
        assert process.stdout
        printed = process.stdout.readline()
        proxy.cut()
        wait_for(lambda: head.jobs()[-1]["status"] == "SUCCEEDED")
        proxy.restore()
        printed += process.stdout.read()
        assert process.wait() == 0
    assert f"line {LINES - 1}\n" in printed


def test_a_cluster_that_never_answers_again_ends_the_wait(
    head: Head, proxy: Proxy, slow_stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "SILENCE_S", 2)
    submitted = head.submit("--no-wait", "--working-dir", slow_stage, "run").run()
    job = submitted.stdout.strip()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    client = JobSubmissionClient(proxy.address, headers=headers)
    proxy.cut()
    with pytest.raises(ResourcesMissing, match=f"may still run. Ask later: ray job status {job}"):
        follow.follow(client, job)


def test_an_interrupted_submission_stops_the_job(head: Head, slow_stage: Path) -> None:
    command = head.submit("--working-dir", slow_stage, "run")
    with command.started() as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 130
    wait_for(lambda: head.jobs()[-1]["status"] == "STOPPED")
    assert command.running() == []


class OldDashboard(BaseHTTPRequestHandler):
    """Answers as the dashboard of an older Ray does."""

    def do_GET(self) -> None:
        version = {"version": "4", "ray_version": "2.55.1", "ray_commit": ""}
        body = json.dumps(version if self.path == "/api/version" else []).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_dashboard_of_another_version_of_ray_is_told(head: Head) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), OldDashboard) as old:
        Thread(target=old.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{old.server_port}"
        message = error(head.submit("run", "fast", RAY_ADDRESS=address))
        old.shutdown()
    assert "runs Ray 2.55.1, but this project is for Ray 2.60" in message


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, "does not accept this token"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "disabled"}, "a command without a token"),
    ],
)
def test_a_command_with_a_wrong_or_missing_token_is_told(
    head: Head, source: Path, token: dict[str, str], message: str
) -> None:
    flags = ("--data.name", "bars", "--data.source", source)
    command = (sys.executable, "-m", "pipeline", "preprocess", *flags)
    assert message in error(head.command(*command, RAY_ADDRESS=head.gcs, **token))


SET_VERSION = """
import json, ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
ray.init(log_to_driver=False)
old = _internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster")
new = json.dumps({**json.loads(old), "ray_version": "2.55.1"}).encode()
_internal_kv_put(b"CLUSTER_METADATA", new, namespace=b"cluster", overwrite=True)
"""


def test_a_command_for_another_version_of_ray_is_told(tmp_path: Path, source: Path) -> None:
    """The cluster says that it is older than it is."""
    flags = ("--data.name", "bars", "--data.source", source)
    with cluster_head.started(tmp_path) as head:
        env = {"RAY_ADDRESS": head.gcs}
        assert head.command(sys.executable, "-c", SET_VERSION, **env).run().returncode == 0
        command = (sys.executable, "-m", "pipeline", "preprocess", *flags)
        message = error(head.command(*command, **env))
    assert "runs Ray 2.55.1 with Python 3." in message
