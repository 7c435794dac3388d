"""Connections to buckets: who does not answer, whose keys change, and what stands between."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from obstore.store import S3Store

from pipeline.artifacts import buckets, object_files
from pipeline.artifacts.storage import Storage
from pipeline.errors import StorageError
from tests.support.gcs import GCS
from tests.support.s3 import S3


@pytest.fixture(autouse=True)
def _no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing of this machine's AWS, and nobody to ask."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Return a server that takes requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server


@contextmanager
def recording(port: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield the port of a server without files, and the keys that signed its requests."""
    keys = list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("Authorization", "").partition("Credential=")[2][:4])
            self.send_response(404)
            self.send_header("x-amz-bucket-region", "eu-west-1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1], keys
        server.shutdown()


@contextmanager
def slow_uploads() -> Iterator[int]:
    """Yield the port of a server to which each upload takes a second."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(1)
            self._answer(b"")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            result = "InitiateMultipartUploadResult" if self.path.endswith("uploads") else "Done"
            self._answer(
                f"<{result}><UploadId>1</UploadId><Bucket>b</Bucket><Key>x</Key><ETag>e</ETag>"
                f"</{result}>".encode()
            )

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", '"e"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def s3_uri(port: int, options: str = "&anonymous=true") -> str:
    return f"s3://bucket/a?scheme=http&endpoint_override=127.0.0.1:{port}{options}"


def missing(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("x")


def write_keys(tmp_path: Path, key: str) -> None:
    text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n"
    (tmp_path / "credentials").write_text(text)


def test_keys_that_somebody_replaces_are_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "CREDENTIALS_LIFE", -buckets.REFRESHED_EARLY)
    with recording() as (port, keys):
        storage = Storage(s3_uri(port, ""))
        for key in ("KEY1", "KEY2"):
            write_keys(tmp_path, key)
            missing(storage)
            time.sleep(0.2)  # obstore asks for credentials at most ten times a second.
    assert keys == ["KEY1", "KEY2"]


def test_the_keys_of_a_uri_come_before_those_of_the_environment(tmp_path: Path) -> None:
    write_keys(tmp_path, "FILE")
    with recording() as (port, keys):
        missing(Storage(s3_uri(port, "").replace("s3://", "s3://MINE:secret@")))
        missing(Storage(s3_uri(port)))
    assert keys == ["MINE", ""]


def test_a_profile_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    for options in ("", "&region=eu-west-1"):
        with recording() as (port, _), pytest.raises(StorageError, match=r"\(nobody\) could not"):
            Storage(s3_uri(port, options)).read("x")


def test_aws_is_asked_for_the_region_of_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with recording() as (port, _):
        monkeypatch.setattr(buckets, "AWS_URL", f"http://127.0.0.1:{port}")
        bucket, _ = buckets.parse("s3://some-bucket")
        connection = buckets.connect(bucket)
    assert isinstance(connection, S3Store)
    assert connection.config["region"] == "eu-west-1"


def test_missing_credentials_are_an_error_that_says_what_to_set() -> None:
    with recording() as (port, _), pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        Storage(s3_uri(port, "")).read("x")


def test_a_bucket_that_does_not_exist_is_a_storage_error(s3_server: S3) -> None:
    storage = Storage(s3_server.uri("x").replace("@bucket", "@missing"))
    with pytest.raises(StorageError, match="there is no bucket 'missing'"):
        storage.write("file", b"")
    with pytest.raises(StorageError, match="404"):
        storage.files()


def test_a_loopback_server_is_asked_directly_though_there_is_a_proxy(
    s3_server: S3, gcs_server: GCS, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    buckets.connect.cache_clear()
    for server in (s3_server, gcs_server):
        Storage(server.uri("proxy")).write("file", b"x")
        assert Storage(server.uri("proxy")).read("file") == b"x"


@pytest.mark.parametrize("num_bytes", [1 << 17, 11 << 20])
def test_an_upload_may_take_longer_than_other_requests(
    monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setitem(buckets.TIMEOUTS, "read_timeout", "500ms")
    monkeypatch.setitem(buckets.RETRIES, "retry_timeout", timedelta(seconds=0))
    monkeypatch.setattr(object_files, "REPEAT_S", 0)
    with slow_uploads() as port:
        Storage(s3_uri(port)).write("x", bytes(num_bytes))
        with pytest.raises(StorageError, match="Could not write"):
            Storage(s3_uri(port)).write("x", b"small")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_server_that_does_not_answer_is_an_error_within_30_seconds(
    silent: socket.socket, scheme: str
) -> None:
    storage = Storage(s3_uri(silent.getsockname()[1]).replace("s3://", f"{scheme}://"))
    started = time.monotonic()
    with pytest.raises(StorageError, match=rf"Could not read {scheme}://bucket/a/x: .*after \d+ r"):
        storage.read("x")
    assert time.monotonic() - started < 30


def test_a_server_that_has_answered_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(buckets.RETRIES, "retry_timeout", timedelta(seconds=0))

    def ask() -> None:
        missing(storage)
        answered.set()

    with recording() as (port, _):
        storage = Storage(s3_uri(port))
        missing(storage)
    answered = threading.Event()
    asking = threading.Thread(target=ask)
    asking.start()
    assert not answered.wait(1)
    with recording(port):
        asking.join(timeout=20)
    assert answered.is_set()


def test_a_server_that_never_answered_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(buckets.RETRIES, "retry_timeout", timedelta(seconds=0))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(StorageError, match="error sending request"):
        Storage(s3_uri(port)).read("x")
    assert time.monotonic() - started < 10


WAIT = """
import signal, sys
from pipeline.artifacts.storage import Storage
from pipeline.artifacts.threads import parallel_map

def interrupt(*_):
    raise KeyboardInterrupt

def open_(storage):
    with storage.open("x"):
        pass

calls = {
    "read": lambda storage: storage.read("x"),
    "write": lambda storage: storage.write("x", b""),
    "open": open_,
    "map": lambda storage: parallel_map(storage.read, "abc"),
}
for kind in (signal.SIGINT, signal.SIGTERM):
    signal.signal(kind, interrupt)
try:
    calls[sys.argv[1]](Storage(sys.argv[2]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("call", ["read", "write", "open", "map"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_server(
    silent: socket.socket, call: str, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", WAIT, call, s3_uri(silent.getsockname()[1])]
    with subprocess.Popen(command) as process:
        connection, _ = silent.accept()
        with connection:
            process.send_signal(number)
            assert process.wait(timeout=5) == 130
