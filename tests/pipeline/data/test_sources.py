"""Sources from folders, and downloads from a local HTTP server that fails as mirrors do."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from pipeline.config import SAMPLE, Data
from pipeline.data import catalog, sources
from pipeline.data.catalog import ROLES
from pipeline.data.download import Unreachable, download
from pipeline.data.readers import idx_format
from pipeline.data.sources import open_source
from pipeline.errors import DataError, SettingError, SourceUnreachable, StorageError

BODY = bytes(range(256)) * 40
SHA256 = hashlib.sha256(BODY).hexdigest()


class Mirror(ThreadingHTTPServer):
    """An HTTP server of `files`, whose next `cuts` replies end after half of their body."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.cuts = 0
        self.ranges = list[str | None]()
        self.has_tags = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.server.ranges.append(requested)
        body = self.server.files.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        if requested and self.headers.get("If-Range") != tag:
            requested = None
        start = int(requested.removeprefix("bytes=").rstrip("-")) if requested else 0
        rest = body[start:]
        self.send_response(206 if requested else 200)
        if requested:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.server.has_tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        cut = self.server.cuts > 0
        self.server.cuts -= 1
        self.wfile.write(rest[: len(rest) // 2] if cut else rest)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror({"file": BODY}) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def serve(mirror: Mirror, folder: Path) -> str:
    mirror.files = {f"{f}.gz": gzip.compress((folder / f).read_bytes()) for f in ROLES.values()}
    return mirror.url


def test_a_file_is_downloaded_once(mirror: Mirror, tmp_path: Path) -> None:
    for _ in range(2):
        download([f"{mirror.url}/file"], tmp_path / "new" / "file", SHA256)
    assert (tmp_path / "new" / "file").read_bytes() == BODY
    assert len(mirror.ranges) == 1


def test_a_cut_download_continues_where_it_stopped(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = 1
    download([f"{mirror.url}/file"], tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == BODY
    assert mirror.ranges == [None, f"bytes={len(BODY) // 2}-"]


def test_a_later_run_continues_the_download_of_an_earlier_one(
    mirror: Mirror, tmp_path: Path
) -> None:
    mirror.cuts = 2
    with pytest.raises(Unreachable):
        download([f"{mirror.url}/file"], tmp_path / "file", SHA256)
    assert not (tmp_path / "file").exists()
    download([f"{mirror.url}/file"], tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == BODY
    assert None not in mirror.ranges[1:]


@pytest.mark.parametrize("has_tags", [True, False])
def test_two_versions_of_a_file_are_never_joined(
    mirror: Mirror, tmp_path: Path, has_tags: bool
) -> None:
    mirror.has_tags = has_tags
    mirror.cuts = 2
    with pytest.raises(Unreachable):
        download([f"{mirror.url}/file"], tmp_path / "file")
    mirror.files["file"] = BODY[::-1]
    download([f"{mirror.url}/file"], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY[::-1]
    assert os.listdir(tmp_path) == ["file"]


def test_a_damaged_file_of_a_known_checksum_is_downloaded_again(
    mirror: Mirror, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(BODY[:100])
    download([f"{mirror.url}/file"], tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_file_is_downloaded_again_by_force_unless_its_checksum_is_right(
    mirror: Mirror, tmp_path: Path
) -> None:
    for sha256, downloads in ((None, 3), (SHA256, 0)):
        mirror.ranges.clear()
        for force in (False, True, True):
            download([f"{mirror.url}/file"], tmp_path / "file", sha256, force=force)
        assert len(mirror.ranges) == downloads


def test_a_loopback_mirror_is_asked_directly_though_there_is_a_proxy(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    download([f"{mirror.url}/file"], tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == BODY


def test_the_next_mirror_is_tried_after_a_wrong_or_missing_file(
    mirror: Mirror, tmp_path: Path
) -> None:
    mirror.files["wrong"] = BODY[::-1]
    urls = [f"{mirror.url}/{name}" for name in ("missing", "wrong", "file")]
    download(urls, tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_file_with_a_wrong_digest_is_never_cached(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="content has sha256"):
        download([f"{mirror.url}/file"], tmp_path / "file", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_a_url_is_a_source(mirror: Mirror, source: Path, tmp_path: Path) -> None:
    settings = Data(name="bars", source=serve(mirror, source), cache=str(tmp_path))
    opened = open_source(settings)
    assert (opened.splits["train"].num_rows, opened.shape) == (600, (12, 10))
    assert opened.class_names == ("0", "1", "2")


def test_a_url_may_hold_plain_files_and_a_broken_one_is_not_kept(
    mirror: Mirror, source: Path, tmp_path: Path
) -> None:
    mirror.files = {file: (source / file).read_bytes() for file in ROLES.values()}
    labels = mirror.files[ROLES["test_labels"]]
    mirror.files[ROLES["test_labels"]] = labels + b"more"
    settings = Data(name="bars", source=mirror.url, cache=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="Remove the trailing bytes"):
        open_source(settings)
    mirror.files[ROLES["test_labels"]] = labels
    assert open_source(settings).splits["test"].num_rows == 90


def test_a_file_of_a_url_that_is_damaged_in_the_cache_is_downloaded_again(
    mirror: Mirror, source: Path, tmp_path: Path
) -> None:
    settings = Data(name="bars", source=serve(mirror, source), cache=str(tmp_path))
    expected = open_source(settings).digests
    (cached,) = tmp_path.glob("bars-*")
    (cached / ROLES["test_images"]).write_bytes(b"torn")
    assert open_source(settings).digests == expected


def test_files_of_a_url_stay_in_the_cache_if_they_only_break_a_rule(
    mirror: Mirror, source: Path, tmp_path: Path
) -> None:
    url = serve(mirror, source)
    one_class = gzip.compress(idx_format.encode(np.zeros(600, np.uint8)))
    mirror.files[f"{ROLES['train_labels']}.gz"] = one_class
    settings = Data(name="bars", source=url, cache=str(tmp_path))
    test_labels = gzip.compress(idx_format.encode(np.zeros(90, np.uint8)))
    mirror.files[f"{ROLES['test_labels']}.gz"] = test_labels
    for _ in range(2):
        with pytest.raises(DataError, match="has 1 classes"):
            open_source(settings)
    assert len(mirror.ranges) == 4


def test_a_cache_that_cannot_be_written_is_an_error(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="Give another one with --data.cache"):
        download([f"{mirror.url}/file"], tmp_path / "file" / "below", SHA256)


def test_the_mirrors_of_a_known_data_set_are_verified_and_cached(
    mirror: Mirror, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(mirror, source)
    profile = catalog.Profile(
        mirrors=("http://127.0.0.1:1", url),
        class_names=("a", "b", "c"),
        sha256_gz={
            r: hashlib.sha256(mirror.files[f"{f}.gz"]).hexdigest() for r, f in ROLES.items()
        },
        sha256={r: hashlib.sha256((source / f).read_bytes()).hexdigest() for r, f in ROLES.items()},
    )
    monkeypatch.setitem(catalog.PROFILES, "bars", profile)
    for _ in range(2):
        opened = open_source(Data(name="bars", cache=str(tmp_path)))
    assert opened.class_names == ("a", "b", "c")
    assert len(mirror.ranges) == 4


def test_a_data_set_is_extracted_from_an_archive_of_several(
    mirror: Mirror, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = catalog.PROFILES["emnist-digits"]
    packed = io.BytesIO()
    with ZipFile(packed, "w") as archive:
        for role, file in known.files.items():
            data = gzip.compress((source / ROLES[role]).read_bytes())
            archive.writestr(f"gzip/{file}.gz", data)
    mirror.files["gzip.zip"] = packed.getvalue()
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    profile = replace(known, mirrors=(mirror.url,), archive_sha256=digest)
    monkeypatch.setitem(catalog.PROFILES, "emnist-digits", profile)
    for _ in range(2):
        opened = open_source(Data(name="emnist-digits", cache=str(tmp_path)))
        # The second time it is extracted again.
        (tmp_path / "emnist-digits" / known.files["test_images"]).write_bytes(b"torn")
    assert (opened.splits["train"].num_rows, opened.shape) == (600, (10, 12))
    assert len(mirror.ranges) == 1
    (kept,) = tmp_path.glob("*-gzip.zip")
    kept.write_bytes(packed.getvalue()[:1000])
    open_source(Data(name="emnist-digits", cache=str(tmp_path)))
    assert len(mirror.ranges) == 2


def test_the_error_without_a_mirror_says_what_else_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_mirrors(monkeypatch)
    with pytest.raises(SourceUnreachable, match="or, for mnist, use a built-in sample with"):
        open_source(Data(cache=str(tmp_path)))


def test_the_sample_never_stands_in_for_another_data_set(tmp_path: Path) -> None:
    data = Data(
        name="bars",
        source="http://127.0.0.1:1",
        cache=str(tmp_path),
        on_unreachable="sample",
    )
    with pytest.raises(SourceUnreachable, match="No mirror of 'bars' answered"):
        open_source(data)


def test_the_sample_warns_that_it_is_not_mnist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_mirrors(monkeypatch)
    sample = open_source(Data(cache=str(tmp_path), on_unreachable="sample"))
    assert sample.name == SAMPLE
    assert {split: rows.num_rows for split, rows in sample.splits.items()} == {
        "train": 4500,
        "test": 500,
    }
    assert sample.shape == (28, 28)
    assert sample.num_last_val == 500
    assert "no accuracy here is MNIST's" in sample.caveat
    assert "WARNING" in capsys.readouterr().err


def test_the_sample_is_real_digits_and_the_same_every_time(tmp_path: Path) -> None:
    first, second = (sources.open_sample(tmp_path / name) for name in "ab")
    assert first.digests == second.digests
    labels = first.splits["train"].read(0, 4500).labels
    assert labels is not None
    assert np.bincount(labels).min() > 400


@pytest.mark.parametrize("style", ["{}", "{}.gz"])
@pytest.mark.parametrize("separator", ["-idx", ".idx"])
def test_a_folder_may_hold_plain_or_gzipped_files(
    source: Path, tmp_path: Path, style: str, separator: str
) -> None:
    for file in ROLES.values():
        data = (source / file).read_bytes()
        name = style.format(file.replace("-idx", separator))
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    plain = open_source(Data(name="bars", source=str(source)))
    copied = open_source(Data(name="bars", source=tmp_path.as_uri()))
    assert copied.digests == plain.digests


def test_files_that_are_not_the_named_data_set_are_refused(source: Path) -> None:
    with pytest.raises(DataError, match=r"are not mnist's: their content has sha256"):
        open_source(Data(name="mnist", source=str(source)))


def test_a_folder_without_the_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no files. Give a folder or a file"):
        open_source(Data(name="bars", source=str(tmp_path)))
    with pytest.raises(DataError, match=r"does not exist. Give a folder or a file"):
        open_source(Data(name="bars", source=str(tmp_path / "nowhere")))


def test_an_unknown_name_needs_a_source() -> None:
    with pytest.raises(SettingError, match="'bars' is not a known data set"):
        open_source(Data(name="bars"))


def test_images_and_labels_of_different_counts_are_refused(source: Path, tmp_path: Path) -> None:
    copy(source, tmp_path)
    (tmp_path / ROLES["test_labels"]).write_bytes(idx_format.encode(np.zeros(89, np.uint8)))
    with pytest.raises(DataError, match="holds 90 images, but .* 89 labels"):
        open_source(Data(name="bars", source=str(tmp_path)))


def test_train_and_test_images_of_different_sizes_are_refused(source: Path, tmp_path: Path) -> None:
    copy(source, tmp_path)
    (tmp_path / ROLES["test_images"]).write_bytes(
        idx_format.encode(np.zeros((90, 10, 12), np.uint8))
    )
    with pytest.raises(DataError, match="All must be of one size"):
        open_source(Data(name="bars", source=str(tmp_path)))


def test_a_folder_in_place_of_a_file_is_refused(source: Path, tmp_path: Path) -> None:
    copy(source, tmp_path)
    (tmp_path / ROLES["test_labels"]).unlink()
    (tmp_path / ROLES["test_labels"]).mkdir()
    with pytest.raises(DataError, match="has no labels of the split 'test'"):
        open_source(Data(name="bars", source=str(tmp_path)))


def copy(source: Path, target: Path) -> None:
    for file in ROLES.values():
        (target / file).write_bytes((source / file).read_bytes())


def no_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = catalog.PROFILES["mnist"]
    dead = catalog.Profile(
        ("http://127.0.0.1:1",), profile.class_names, profile.sha256_gz, profile.sha256
    )
    monkeypatch.setitem(catalog.PROFILES, "mnist", dead)


def test_a_download_says_nothing_of_hidden_files(
    mirror: Mirror, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Data(name="bars", source=serve(mirror, source), cache=str(tmp_path))
    for _ in range(2):
        open_source(settings)
    assert "skipped" not in capsys.readouterr().err
