"""Outputs that cannot be written, or have two writers: an error, and no damaged artifact."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Artifacts
from tests.support.folders import contents
from tests.support.processes import Command, pipeline

UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("unshare")
        or subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode != 0,
        reason="mounting a tmpfs in a user namespace is not allowed on this machine",
    ),
]

DISK_FULL = """
set -e
mount -t tmpfs -o size=400k tmpfs "$DISK"
head -c 380000 /dev/zero > "$DISK/filler"
"$@" && exit 9
test $? = 2
test -n "$(find "$DISK" -name '*.parquet')"
test -z "$(find "$DISK" -name '*.tmp' -o -name manifest.json)"
rm "$DISK/filler"
"$@"
cp -r "$DISK" "$RESULT"
"""

READ_ONLY = """
set -e
mount -t tmpfs tmpfs "$DISK"
mount -o remount,ro "$DISK"
"$@" && exit 9
test $? = 2
"""


@pytest.fixture(params=["preprocess", "score"])
def command(
    request: pytest.FixtureRequest, artifacts: Artifacts, source: Path, tmp_path: Path
) -> Command:
    """Return a command that writes many small shards into the folder `disk`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if request.param == "preprocess":
        flags: tuple[object, ...] = ("--root", disk, "--data.name", "bars")
        flags += ("--data.source", source, "--data.rows-per-shard", 20)
    else:
        flags = ("--root", artifacts.root, "--model", artifacts.model.ref, "--output", disk)
        flags += ("--input", source / "train-images-idx3-ubyte", "--rows-per-shard", 20)
    return pipeline(request.param, *flags)


def run_on_small_disk(script: str, command: Command, tmp_path: Path) -> str:
    """Run the script, which mounts a small file system at `disk`; return the command's stderr."""
    env = {"DISK": str(tmp_path / "disk"), "RESULT": str(tmp_path / "result")}
    completed = Command(*UNSHARE, "sh", "-c", script, "sh", *command.args, env=env).run()
    assert completed.returncode == 0, completed.stderr
    assert "Traceback" not in completed.stderr
    return completed.stderr


def test_a_full_disk_is_reported_and_finished_shards_are_kept(
    command: Command, tmp_path: Path
) -> None:
    stderr = run_on_small_disk(DISK_FULL, command, tmp_path)
    assert "No space left on device" in stderr
    assert "bytes are free there. Free some space, then run the same command again." in stderr
    assert re.search(r"shards( of \w+)? already exist", stderr)
    assert "WARNING" not in stderr
    assert command.run().returncode == 0
    assert contents(tmp_path / "result") == contents(tmp_path / "disk")


def test_a_read_only_output_is_reported(command: Command, tmp_path: Path) -> None:
    stderr = run_on_small_disk(READ_ONLY, command, tmp_path)
    assert f"Could not write {tmp_path}/disk" in stderr
    assert "Read-only file system" in stderr


def test_two_writers_leave_one_complete_output(command: Command, tmp_path: Path) -> None:
    with command.started() as first, command.started() as second:
        codes = sorted([first.wait(), second.wait()])
    assert codes in ([0, 0], [0, 2])
    written = contents(tmp_path / "disk")
    shutil.rmtree(tmp_path / "disk")
    assert command.run().returncode == 0
    assert contents(tmp_path / "disk") == written
