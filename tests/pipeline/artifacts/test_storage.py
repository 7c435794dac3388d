from __future__ import annotations

import hashlib
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.storage import Storage
from pipeline.errors import StorageError


def test_a_file_is_read_as_written_and_replaces_an_older_one(storage: Storage) -> None:
    storage.write("a/b", b"one")
    storage.write("a/b", pa.py_buffer(b"two"))
    assert storage.read("a/b") == b"two"
    assert storage.files() == ["a/b"]


def test_a_missing_file_is_a_file_not_found_error(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("a")
    with pytest.raises(FileNotFoundError), storage.open("a"):
        pass


def test_a_failed_write_leaves_the_old_content_and_nothing_else(storage: Storage) -> None:
    storage.write("file", b"old")
    with pytest.raises(TypeError):
        storage.write("file", "not bytes")
    assert storage.read("file") == b"old"
    assert storage.files() == ["file"]


def test_files_are_listed_below_a_folder_alone(storage: Storage) -> None:
    for path in ("a/x", "a/b c/[y]", "ab/z", "ü%20?#&+"):
        storage.write(path, path.encode())
    assert storage.files() == ["a/b c/[y]", "a/x", "ab/z", "ü%20?#&+"]
    assert storage.files("a") == ["a/b c/[y]", "a/x"]
    assert storage.files("none") == []
    assert [storage.read(path).decode() for path in storage.files()] == storage.files()


def test_a_folder_is_none_of_the_files(storage: Storage) -> None:
    storage.write("a/b", b"")
    assert storage.exists("a/b")
    assert storage.is_folder("a")
    assert storage.is_folder("")
    assert not storage.exists("a")
    assert not storage.is_folder("a/b")
    assert not storage.is_folder("none")


def test_an_open_file_is_read_at_any_position(storage: Storage) -> None:
    content = os.urandom(3_000_000)
    storage.write("file", content)
    with storage.open("file") as file:
        assert file.size() == len(content)
        file.seek(2_500_000)
        assert file.read(1000) == content[2_500_000:2_501_000]
        file.seek(10)
        assert file.read() == content[10:]
        assert file.read() == b""


def test_a_parquet_file_is_read_by_threads(storage: Storage) -> None:
    table = pa.table({"a": list(range(30_000)), "b": ["text"] * 30_000})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=1000)
    storage.write("file", sink.getvalue())
    with storage.open("file") as file:
        assert pq.read_table(file, pre_buffer=True) == table


def test_a_file_that_is_replaced_while_it_is_read_is_never_mixed(storage: Storage) -> None:
    storage.write("file", b"a" * 3_000_000)
    # An open local file is the old one to its end.
    raises = pytest.raises(StorageError, match="was replaced while it was read")
    with nullcontext() if storage.is_local else raises, storage.open("file") as file:
        read = file.read(1000)
        storage.write("file", b"b" * 3_000_000)
        file.seek(2_000_000)
        read += file.read(1000)
    assert set(read) == {ord("a")}


def test_a_fingerprint_changes_with_the_content(storage: Storage) -> None:
    storage.write("a", b"one")
    storage.write("b", b"one")
    before = storage.fingerprint("a", "b", "none")
    assert storage.fingerprint("a", "b", "none") == before
    storage.write("b", b"two")
    after = storage.fingerprint("a", "b", "none")
    assert (after[:2], after[2:] == before[2:]) == (before[:2], False)


def test_no_update_is_lost(storage: Storage) -> None:
    def add(number: int) -> None:
        storage.update("file", lambda old: b"%b %d" % (old or b"", number))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(16)))
    assert sorted(map(int, storage.read("file").split())) == list(range(16))


def test_an_update_may_leave_all_as_it_is(storage: Storage) -> None:
    assert storage.update("file", lambda old: None) is None
    assert not storage.exists("file")
    storage.write("file", b"old")
    assert storage.update("file", lambda old: None) == b"old"


def test_a_file_is_deleted_and_a_folder_is_not(storage: Storage) -> None:
    storage.write("folder/file", b"")
    raises = pytest.raises(StorageError, match="Could not delete .*folder: Is a directory")
    with raises if storage.is_local else nullcontext():
        storage.delete("folder")
    assert storage.exists("folder/file")
    storage.delete("folder/file")
    storage.delete("folder/file")
    assert storage.files() == []


def test_a_folder_is_deleted_when_asked_for(storage: Storage) -> None:
    for path in ("a/b", "a/c/d", "ab"):
        storage.write(path, b"")
    storage.delete_folder("a")
    storage.delete_folder("a")
    assert storage.files() == ["ab"]


def test_storage_pickles_as_its_root(storage: Storage) -> None:
    copy = pickle.loads(pickle.dumps(storage))
    copy.write("file", b"x")
    assert copy == storage
    assert storage.read("file") == b"x"


def test_requests_run_in_threads_and_in_the_main_thread(storage: Storage) -> None:
    storage.write("file", b"x")
    read = list[bytes]()
    thread = threading.Thread(target=lambda: read.append(storage.read("file")))
    thread.start()
    thread.join()
    assert read == [storage.read("file")]


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("gopher://somewhere", "the schemes are file, s3 and gs"),
        ("s4://key:secret@bucket/a", "the schemes are file, s3 and gs"),
        ("s3://key:se/cret@bucket/a", "names no bucket"),
        ("s3://key:secret@/a", "names no bucket"),
        ("s3://key:secret@[bucket]/a", "names no bucket"),
        ("s3://key@bucket/a", "KEY:SECRET"),
        ("s3://key:secret@bucket/a?regoin=x", "options are region, scheme"),
    ],
)
def test_a_uri_that_does_not_work_is_shown_without_credentials(uri: str, problem: str) -> None:
    with pytest.raises(
        StorageError, match=f"is not a folder or a URI that works: .*{problem}"
    ) as e:
        Storage(uri)
    assert "cret" not in str(e.value)


def test_options_and_credentials_of_a_uri_stay_out_of_paths_and_messages() -> None:
    storage = Storage("s3://key:secret@bucket/root?region=eu-west-1")
    assert storage.uri("runs/a") == "s3://key:secret@bucket/root/runs/a?region=eu-west-1"
    assert storage.display("runs/a") == "s3://bucket/root/runs/a"
    assert "secret" not in repr(storage)


def test_the_folder_of_a_root_keeps_its_options(tmp_path: Path) -> None:
    folder, name = Storage("s3://key:secret@bucket/a/b.npz?endpoint_override=h:1/x").split()
    assert (folder.root, name) == ("s3://key:secret@bucket/a?endpoint_override=h:1/x", "b.npz")
    folder, name = Storage(str(tmp_path / "a?b.npz")).split()
    assert (folder.root, name) == (str(tmp_path), "a?b.npz")


def test_a_large_file_is_hashed_in_parts(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 10
    storage.write("file", content)
    assert storage.sha256("file") == hashlib.sha256(content).hexdigest()
    monkeypatch.setattr("pipeline.artifacts.storage.PART_BYTES", 1000)
    parts = [hashlib.sha256(content[start : start + 1000]).digest() for start in (0, 1000, 2000)]
    assert storage.sha256("file") == hashlib.sha256(b"".join(parts)).hexdigest()
