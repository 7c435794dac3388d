from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artifacts import local_files
from pipeline.artifacts.storage import Storage
from pipeline.errors import StorageError


@pytest.fixture(autouse=True)
def _warn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "_warned", set())


def failing(error: int) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    return call


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_new_folders_and_files_are_flushed_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = list[str]()
    fsync = os.fsync

    def record(handle: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    Storage(str(tmp_path)).write("a/b/file", b"x")
    root = str(tmp_path)
    assert flushed[:2] == [root, f"{root}/a"]
    assert flushed[2].startswith(f"{root}/a/b/.file.")
    assert flushed[3:] == [f"{root}/a/b"]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_a_file_system_without_fsync_is_written_to_with_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: int,
) -> None:
    monkeypatch.setattr(os, "fsync", failing(error))
    storage = Storage(str(tmp_path))
    for path in ("a/x", "a/x", "b/y"):
        storage.write(path, b"content")
        assert storage.read(path) == b"content"
    assert len(warnings(caplog)) == 1
    assert "cannot make a write durable" in warnings(caplog)[0]


def test_a_disk_that_fails_to_write_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(StorageError, match="Could not write .*/x: Input/output error"):
        Storage(str(tmp_path)).write("x", b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_with_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: int,
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(error))
    storage = Storage(str(tmp_path))
    with storage.locked(".lock"):
        storage.update("file", lambda old: b"new")
    assert storage.read("file") == b"new"
    assert len(warnings(caplog)) == 1
    assert "has no locks" in warnings(caplog)[0]


def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with (
        storage.locked("out/.lock"),
        pytest.raises(StorageError, match=f"Another process is working on {tmp_path}/out"),
        storage.locked("out/.lock", wait_s=0.1),
    ):
        raise AssertionError("two hold the lock")
    with storage.locked("out/.lock"):
        pass


def test_a_path_through_a_file_is_a_storage_error(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("file", b"")
    with pytest.raises(StorageError, match=r"Could not write .*file/below: Not a directory"):
        storage.write("file/below", b"")


def test_a_relative_root_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("here")
    monkeypatch.chdir("/")
    storage.write("file", b"x")
    assert (tmp_path / "here" / "file").read_bytes() == b"x"


def test_a_file_uri_is_a_root(tmp_path: Path) -> None:
    storage = Storage((tmp_path / "a b").as_uri())
    storage.write("c", b"x")
    assert (tmp_path / "a b" / "c").read_bytes() == b"x"


def test_a_name_that_is_not_utf_8_is_an_error(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(StorageError, match="URI that works"):
        Storage(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    (tmp_path / os.fsdecode(b"\xfe")).write_bytes(b"")
    with pytest.raises(StorageError, match="is not UTF-8"):
        Storage(str(tmp_path)).files()
