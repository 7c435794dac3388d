"""SIGINT and SIGTERM, to a command or to its whole process group, at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.support.processes import Command, pipeline, wait_for
from tests.support.sample_data import write_source
from tests.support.servers import serving, started

END_S = 20
"""A command has ended this long after a signal; it is a few seconds if nothing else runs."""

STAGES = ("preprocess", "train", "export", "evaluate", "score", "one prediction over HTTP")


def kill(process: subprocess.Popen[str], kind: signal.Signals, *, group: bool) -> None:
    if group:
        os.killpg(process.pid, kind)
        # `timeout` sends the signal to the process and then to the group.
    process.send_signal(kind)


def has_handler(pid: int) -> bool:
    """Return whether a process catches SIGTERM. Python does so only when it is told to."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_sigterm_to_its_whole_group_ends_a_server_in_order(tmp_path: Path) -> None:
    with started(str(tmp_path), process_group=0) as server:
        files = {
            line.split(" -f ")[1].split()[0] for line in server.command.running() if " -f " in line
        }
        kill(server.process, signal.SIGTERM, group=True)
        assert server.process.wait(timeout=END_S) == 0
    wait_for(lambda: server.command.running() == [], timeout_s=10)
    assert files
    assert not any(Path(file).exists() for file in files)


@pytest.mark.parametrize("name", ["run", "show", "server"])
def test_ctrl_c_during_the_start_is_one_line(name: str, source: Path, tmp_path: Path) -> None:
    command = {
        "run": pipeline("run", "--data.name", "bars", "--data.source", source),
        "show": pipeline("show"),
        "server": serving(),
    }[name]
    command.args += ["--root", str(tmp_path)]
    moments = random.Random(0)
    for _ in range(5):
        with command.started(stderr=subprocess.PIPE) as process:
            wait_for(partial(has_handler, process.pid), timeout_s=10)
            time.sleep(moments.uniform(0, 0.6))
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=END_S)
        # It may have come to the end, or to its error, before that.
        assert process.returncode in (2, 130)
        *titles, last = stderr.splitlines()
        assert set(titles) <= set(STAGES), stderr
        assert last.startswith(("interrupted", "error: ")), stderr


DEAF = """
import ctypes
from pipeline.process import signals

def wait():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    try:
        print("ready", flush=True)
    finally:
        libc.pthread_mutex_lock(mutex)

signals.run(wait, "")
"""


@pytest.mark.slow
def test_a_command_that_waits_in_a_library_ends_all_the_same() -> None:
    """Wait in C without end, as for an object store: no handler of Python runs meanwhile."""
    with Command(sys.executable, "-c", DEAF).started(stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "group"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_in_the_middle_of_a_stage_ends_the_run_and_all_its_processes(
    stage: str, kind: signal.Signals, group: bool, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "source")
    command = pipeline(
        *("run", "fast", "--root", tmp_path / "root", "--check-serving"),
        *("--data.name", "bars", "--data.source", source, "--train.epochs", "30"),
    )
    with command.started(stderr=subprocess.PIPE, process_group=0) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip() == stage:
                break
        time.sleep(random.Random(f"{stage}{group}{kind}").uniform(0, 1.5))
        kill(process, kind, group=group)
        _, stderr = process.communicate(timeout=END_S)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert "Traceback" not in stderr
    wait_for(lambda: command.running() == [], timeout_s=10)
