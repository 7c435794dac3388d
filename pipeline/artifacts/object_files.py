"""Object files: files of a bucket of S3 or Google Cloud Storage, through obstore.

pyarrow.fs has no conditional writes, so of two promotions at once one could be lost. obstore has
them, and bounds for the time of every request.
"""

from __future__ import annotations

import io
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Any, TypeVar

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import GCSStore, S3Store

from pipeline.artifacts import buckets
from pipeline.artifacts.threads import interruptible, parallel_map

REPEAT_S = 60
"""Time for which a request is repeated while the server is busy, or is lost after an answer."""

BUSY = re.compile(r"status code: (429|50[0234])")
"""Statuses of a busy server, in the text of an error; obstore gives no number."""

LOST = re.compile(r"HTTP error: error sending request")
"""The text of an error of a connection that cannot be made, or that broke."""

UPDATE_S = 30
"""For an update that is tried again because others change the file."""

MIN_READ_BYTES, MAX_READ_BYTES = 1 << 16, 1 << 24
"""Fetched at once for a reader that asks for less; it doubles while a file is read in order, also
if small parts are skipped."""

SMALL_BYTES = 1 << 16
"""An upload of up to this size is sent at once, even over a slow link."""

UPLOADS_AT_ONCE = 4
"""Parts of a file, of 5 MiB each, that share the link."""

T = TypeVar("T")

_answered = set[buckets.Bucket]()
"""Buckets whose server has answered this process. That of another may have a wrong address."""


class ObjectFiles:
    """Files below a path of a bucket, by relative path."""

    def __init__(self, uri: str) -> None:
        self._bucket, self._prefix = buckets.parse(uri)

    def open(self, path: str) -> pa.NativeFile:
        meta = self._call(lambda store: obstore.head(store, self._key(path)))
        return pa.PythonFile(_Reader(self, path, meta["size"], meta["e_tag"]), mode="r")

    def read(self, path: str) -> bytes:
        return self._read(path)[0]

    def read_range(self, path: str, start: int, end: int, e_tag: str | None) -> memoryview:
        """Return a part of a file. Raise OSError if the file has another tag by now."""
        options: Any = {"range": (start, end), "if_match": e_tag}
        try:
            return self._call(
                lambda store: memoryview(
                    obstore.get(store, self._key(path), options=options).bytes()
                )
            )
        except PreconditionError:
            raise OSError("it was replaced while it was read") from None

    def fingerprint(self, *paths: str) -> tuple[int, ...]:
        def describe(path: str) -> tuple[int, int]:
            try:
                meta = self._call(lambda store: obstore.head(store, self._key(path)))
            except FileNotFoundError:
                return 0, 0
            content = meta["e_tag"] or str(meta["last_modified"])
            return meta["size"], int(sha256(content.encode()).hexdigest()[:15], 16)

        return tuple(value for pair in parallel_map(describe, paths) for value in pair)

    def is_folder(self, path: str) -> bool:
        prefix = self._key(path)
        return self._call(lambda store: any(obstore.list(store, prefix or None)))

    def exists(self, path: str) -> bool:
        with suppress(FileNotFoundError):
            self._call(lambda store: obstore.head(store, self._key(path)))
            return True
        return False

    def files(self, path: str) -> list[str]:
        folder = self._key(path)
        sizes = self._call(
            lambda store: {
                meta["path"]: meta["size"]
                for chunk in obstore.list(store, folder or None)
                for meta in chunk
            }
        )
        # Some tools mark a folder by an empty object of its name.
        folders = {folder, *(path.rpartition("/")[0] for path in sizes)}
        start = len(self._prefix) + 1 if self._prefix else 0
        return [path[start:] for path, size in sizes.items() if size or path not in folders]

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        self._put(path, data, "overwrite")

    def update(self, path: str, change: Callable[[bytes | None], bytes | None]) -> bytes | None:
        deadline = time.monotonic() + UPDATE_S
        while True:
            old: bytes | None = None
            mode: Any = "create"
            with suppress(FileNotFoundError):
                old, mode = self._read(path)
            new = change(old)
            if new is None:
                return old
            try:
                self._put(path, new, mode)
            except (AlreadyExistsError, PreconditionError):
                if time.monotonic() > deadline:
                    raise OSError(f"others have kept changing it for {UPDATE_S} s") from None
                time.sleep(random.uniform(0, 0.2))
            else:
                return new

    def delete(self, path: str) -> None:
        # S3 is silent about a file that is absent; Google says so.
        with suppress(FileNotFoundError):
            self._call(lambda store: obstore.delete(store, self._key(path)))

    def delete_folder(self, path: str) -> None:
        parallel_map(self.delete, self.files(path))

    def _read(self, path: str) -> tuple[bytes, Any]:
        """Return the content of a file, and what identifies it in a conditional write."""

        def get(store: S3Store | GCSStore) -> tuple[bytes, Any]:
            result = obstore.get(store, self._key(path))
            tags = {"e_tag": result.meta["e_tag"], "version": result.meta["version"]}
            return result.bytes().to_bytes(), {tag: tags[tag] for tag in tags if tags[tag]}

        return self._call(get)

    def _put(self, path: str, data: bytes | pa.Buffer, mode: Any) -> None:
        # An Arrow buffer has signed bytes, which obstore takes for numbers.
        content = memoryview(data).cast("B")
        try:
            self._call(
                lambda store: obstore.put(
                    store, self._key(path), content, mode=mode, max_concurrency=UPLOADS_AT_ONCE
                ),
                upload=content.nbytes > SMALL_BYTES,
            )
        except FileNotFoundError:
            raise OSError(f"there is no bucket {self._bucket.name!r}") from None

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self._prefix, path) if part)

    def _call(self, work: Callable[[S3Store | GCSStore], T], *, upload: bool = False) -> T:
        """Return what a request answers; raise FileNotFoundError, OSError or a failed condition."""
        deadline = time.monotonic() + REPEAT_S
        with _as_os_error():
            while True:
                try:
                    result = interruptible(
                        lambda: work(buckets.connect(self._bucket, upload=upload))
                    )
                except (BaseError, FileNotFoundError) as error:
                    if time.monotonic() > deadline or not self._may_pass(str(error)):
                        raise
                else:
                    _answered.add(self._bucket)
                    return result
                time.sleep(random.uniform(0.2, 1))

    def _may_pass(self, error: str) -> bool:
        """Return whether the request that had this error may succeed a moment later."""
        if LOST.search(error):
            return self._bucket in _answered
        _answered.add(self._bucket)
        return BUSY.search(error) is not None


class _Reader(io.RawIOBase):
    """A file that is read by ranges, all of the same content."""

    def __init__(self, files: ObjectFiles, path: str, size: int, e_tag: str | None) -> None:
        self._files, self._path, self._size, self._e_tag = files, path, size, e_tag
        self._position = 0
        self._start, self._buffer = 0, memoryview(b"")
        self._ahead = MIN_READ_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, target: Any, /) -> int:
        wanted = min(len(target), self._size - self._position)
        if wanted <= 0:
            return 0
        offset = self._position - self._start
        if not 0 <= offset <= len(self._buffer) - wanted:
            self._fetch(wanted)
            offset = 0
        target[:wanted] = self._buffer[offset : offset + wanted]
        self._position += wanted
        return wanted

    def _fetch(self, wanted: int) -> None:
        in_order = 0 < self._position - self._start <= 2 * len(self._buffer)
        self._ahead = min(2 * self._ahead, MAX_READ_BYTES) if in_order else MIN_READ_BYTES
        end = min(self._position + max(wanted, self._ahead), self._size)
        self._buffer = self._files.read_range(self._path, self._position, end, self._e_tag)
        self._start = self._position


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Raise other errors than a failed condition as OSError, with a short reason."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except (BaseError, ValueError) as error:
        reason, _, _ = str(error).partition("\n")
        # Our own text, and not what obstore and the server put around it.
        reason = reason.rpartition("credential provider: ValueError: ")[2]
        reason = re.sub(r", max_retries: .*?(?= - |$)", "", reason.partition(": <?xml")[0])
        raise OSError(reason) from None
