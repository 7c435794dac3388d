from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from pipeline.artifacts.storage import Storage
from pipeline.errors import StorageError


def test_a_file_is_read_as_written_and_replaces_an_older_one(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a/b", b"one")
    storage.write("a/b", b"two")
    assert storage.read("a/b") == b"two"
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Storage(str(tmp_path)).read("a")


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("file", b"old")
    with pytest.raises(TypeError):
        storage.write("file", "not bytes")
    assert storage.read("file") == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_path_through_a_file_is_a_storage_error(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("file", b"")
    with pytest.raises(StorageError, match=r"Could not write .*file/below: "):
        storage.write("file/below", b"")


def test_an_unknown_uri_is_an_error() -> None:
    with pytest.raises(StorageError, match="is not a folder or a URI that works"):
        Storage("gopher://somewhere")


def test_files_folders_and_missing_paths_can_be_deleted(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("folder/file", b"")
    storage.delete("folder/file")
    storage.delete("folder")
    storage.delete("folder")
    assert not (tmp_path / "folder").exists()


def test_storage_pickles_as_its_absolute_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(pickle.dumps(Storage("here")))
    monkeypatch.chdir("/")
    copy.write("file", b"x")
    assert (tmp_path / "here" / "file").read_bytes() == b"x"


def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with (
        storage.locked("out/.lock"),
        pytest.raises(StorageError, match=f"Another process is working on {tmp_path}/out"),
        storage.locked("out/.lock"),
    ):
        raise AssertionError("two hold the lock")
    with storage.locked("out/.lock"):
        pass


def test_options_and_credentials_of_a_uri_stay_out_of_paths_and_messages() -> None:
    storage = Storage("s3://key:secret@bucket/root?region=eu-west-1")
    assert storage.uri("runs/a") == "s3://key:secret@bucket/root/runs/a?region=eu-west-1"
    assert storage.display("runs/a") == "s3://bucket/root/runs/a"
    assert "secret" not in repr(storage)


@pytest.mark.parametrize("uri", ["s4://key:secret@bucket/a", "s3://key:se/cret@bucket/a"])
def test_a_uri_that_does_not_work_is_shown_without_credentials(uri: str) -> None:
    with pytest.raises(StorageError, match=r"://bucket/a' is not a folder") as error:
        Storage(uri)
    assert "cret" not in str(error.value)


def test_a_file_uri_is_a_root(tmp_path: Path) -> None:
    storage = Storage((tmp_path / "a b").as_uri())
    storage.write("c", b"x")
    assert (tmp_path / "a b" / "c").read_bytes() == b"x"
