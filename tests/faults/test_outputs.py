"""Outputs that cannot be written, or that another writes to: an error, and nothing damaged."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Artifacts
from tests.support.processes import Command, pipeline

UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("unshare")
        or subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode != 0,
        reason="this machine lets nobody mount a small disk",
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
    """One that writes many small shards into the folder `disk`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if request.param == "preprocess":
        flags: tuple[object, ...] = ("--root", disk, "--data.name", "bars")
        flags += ("--data.source", source, "--data.rows-per-shard", 20)
    else:
        flags = ("--root", artifacts.root, "--model", artifacts.model.ref, "--output", disk)
        flags += ("--input", source / "train-images-idx3-ubyte", "--rows-per-shard", 20)
    return pipeline(request.param, *flags)


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def on_a_disk_of_its_own(script: str, command: Command, tmp_path: Path) -> str:
    """What the command says while the script has a small file system at `disk`."""
    env = {"DISK": str(tmp_path / "disk"), "RESULT": str(tmp_path / "result")}
    done = Command(*UNSHARE, "sh", "-c", script, "sh", *command.args, env=env).run()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_full_disk_is_named_and_what_was_finished_is_kept(
    command: Command, tmp_path: Path
) -> None:
    said = on_a_disk_of_its_own(DISK_FULL, command, tmp_path)
    assert "No space left on device" in said
    assert "bytes are free there. Make room, then run the same command again." in said
    assert "shards were there already" in said
    assert command.run().returncode == 0
    assert contents(tmp_path / "result") == contents(tmp_path / "disk")


def test_a_read_only_output_is_named(command: Command, tmp_path: Path) -> None:
    said = on_a_disk_of_its_own(READ_ONLY, command, tmp_path)
    assert f"Could not write {tmp_path}/disk" in said
    assert "Read-only file system" in said


def test_of_two_at_once_one_wins_whole(command: Command, tmp_path: Path) -> None:
    with command.started() as first, command.started() as second:
        codes = sorted([first.wait(), second.wait()])
    assert codes in ([0, 0], [0, 2])
    found = contents(tmp_path / "disk")
    shutil.rmtree(tmp_path / "disk")
    assert command.run().returncode == 0
    assert contents(tmp_path / "disk") == found
