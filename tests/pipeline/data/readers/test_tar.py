"""Tar files of images and labels, sound, damaged and hostile."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.storage import Storage
from pipeline.data.readers.rows import RowBatch
from pipeline.data.readers.tar import TarReader, open_tar
from pipeline.errors import DataError
from tests.support.sources import encode_png, noise, webdataset, write_tar

Members = Sequence[tuple[str | tarfile.TarInfo, bytes]]


def open_members(folder: Path, members: Members) -> TarReader:
    return open_tar(Storage(str(folder)), write_tar(folder / "x.tar", members).name)


def read_all(reader: TarReader) -> RowBatch:
    return reader.with_classes((0, 1)).read(0, reader.entry.rows or 0, 0, ())


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """Return a link, a device or a folder."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def test_images_and_labels_are_joined_by_name(tmp_path: Path) -> None:
    batch = read_all(open_members(tmp_path, webdataset()))
    np.testing.assert_array_equal(batch.images, noise(12))
    np.testing.assert_array_equal(batch.labels, np.arange(12) % 2)


def test_labels_may_lie_apart_and_of_several_the_class_is_taken(tmp_path: Path) -> None:
    images, labels = webdataset()[::2], webdataset()[1::2]
    captions = [(name.replace("cls", "txt"), b"a caption") for name, _ in labels]
    batch = read_all(open_members(tmp_path, [*labels, *captions, *images]))
    np.testing.assert_array_equal(batch.labels, np.arange(12) % 2)


def test_names_of_members_are_never_used_as_paths(tmp_path: Path) -> None:
    names = ["/etc/0.png", "../../0.png", "a/../0.png", "./0.png", "ü/0.png", "a" * 300 + ".png"]
    reader = open_members(
        tmp_path / "in", [(n, encode_png(i)) for n, i in zip(names, noise(6), strict=True)]
    )
    np.testing.assert_array_equal(read_all(reader).images, noise(6))
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.tar"]


def test_links_devices_and_other_files_are_skipped_with_a_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others: Members = [
        special("a.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("b.png", tarfile.LNKTYPE, "00000.png"),
        special("c.png", tarfile.CHRTYPE),
        special("d.png", tarfile.FIFOTYPE),
        special("folder", tarfile.DIRTYPE),
        ("._00000.png", b"x"),
        ("00000.json", b"{}"),
        ("00000.seg.webp", b"x"),
        ("99999.cls", b"1"),
    ]
    assert open_members(tmp_path, [*webdataset(), *others]).entry.rows == 12
    shown = " ".join(capsys.readouterr().err.split())
    assert "5 members are skipped, as they are hidden, links, sparse or no files" in shown
    assert "2 members are skipped, as they are neither images nor labels" in shown
    assert "1 members are skipped, as they are labels without an image" in shown


def test_a_sparse_member_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = tarfile.TarInfo("sparse.png")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(1 << 50)}
    info.pax_headers |= {"GNU.sparse.map": "0,3"}
    assert open_members(tmp_path, [*webdataset(), (info, b"png")]).entry.rows == 12
    assert "1 members are skipped" in " ".join(capsys.readouterr().err.split())


def test_images_that_cannot_be_decoded_are_rejected_rows(tmp_path: Path) -> None:
    members = webdataset()
    members[0] = (members[0][0], b"")
    members[4] = (members[4][0], members[4][1][:-20])
    members[6] = (members[6][0], encode_png(noise(1, 9, (3, 3))[0]))
    batch = read_all(open_members(tmp_path, members))
    assert [row.id for row in batch.rejects] == [0, 2, 3]
    np.testing.assert_array_equal(batch.ids, np.delete(np.arange(12), [0, 2, 3]))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "holds no image files"),
        ([("a.txt", b"1")], "holds no image files"),
        ([*webdataset(), ("x.png", webdataset(1)[0][1])], "the image '/x' has no label beside it"),
        ([*webdataset(), webdataset()[0]], "has several images '/00000'"),
        ([*webdataset(), ("00000.jpg", b"")], "has several images '/00000'"),
        ([*webdataset(), webdataset()[1]], "has several labels of '/00000'"),
        ([*webdataset(1), ("00000.txt", b"\xff")], "can't decode byte"),
    ],
)
def test_members_that_do_not_fit_are_refused(
    tmp_path: Path, members: Members, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_members(tmp_path, members)


@pytest.mark.parametrize("length", [0, 100, 512, 700, 1536, 5120, 10_240, -10_000, -512, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    """Also where a member ends: otherwise rows would be missing without a word."""
    path = write_tar(tmp_path / "x.tar")
    content = path.read_bytes()
    path.write_bytes(content[:length])
    try:
        reader = open_tar(Storage(str(tmp_path)), "x.tar")
    except DataError:
        return
    # The last kilobytes are padding.
    assert length in (-512, -1)
    assert reader.entry.rows == 12


def test_joined_files_and_damaged_headers_are_refused(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content + content)
    with pytest.raises(DataError, match="it continues after the member that ends at byte"):
        open_tar(Storage(str(tmp_path)), "x.tar")
    damaged = bytearray(content)
    damaged[1024 + 10] ^= 1
    (tmp_path / "x.tar").write_bytes(damaged)
    with pytest.raises(DataError, match="it continues after the member that ends at byte"):
        open_tar(Storage(str(tmp_path)), "x.tar")


def huge_header(kind: bytes, size: int) -> bytes:
    """Return a header of a member that is said to be so large; the file ends after it."""
    info = tarfile.TarInfo("x.png")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


OPEN = r"""
import re, sys
from pipeline.artifacts.storage import Storage
from pipeline.data.readers.tar import open_tar
from pipeline.errors import DataError
try:
    open_tar(Storage(sys.argv[1]), "x.tar")
except DataError as error:
    print(error)
print(int(re.findall(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[0]) >> 10)
"""


def test_headers_of_hostile_sizes_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE, tarfile.XGLTYPE):
        for size in (1 << 31, 1 << 40, (1 << 62) - 1):
            (tmp_path / "x.tar").write_bytes(huge_header(kind, size))
            with pytest.raises(DataError):
                open_tar(Storage(str(tmp_path)), "x.tar")
    # A file that really holds a header of half a GiB.
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(huge_header(tarfile.XHDTYPE, (1 << 29) - 4096)[:512])
        file.truncate(1 << 29)
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    message, peak_mib = result.stdout.splitlines()
    assert "a header of" in message
    assert int(peak_mib) < 450


@given(st.integers(0, 20_000), st.integers(1, 255), st.integers(0, 3))
def test_a_changed_byte_loses_no_row_without_a_word(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int, count: int
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    data = bytearray(write_tar(folder / "x.tar", count=1 + count).read_bytes())
    data[position % len(data)] ^= flip
    (folder / "x.tar").write_bytes(data)
    try:
        reader = open_tar(Storage(str(folder)), "x.tar")
    except DataError:
        return
    batch = read_all(reader)
    assert len(batch.ids) + len(batch.rejects) == reader.entry.rows
    # A changed name may hide a member or a label; its header's checksum covers it.
    assert reader.entry.rows == 1 + count


@given(st.integers(1, 12), st.data())
def test_any_range_of_rows_equals_that_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, count: int, data: st.DataObject
) -> None:
    reader = open_members(tmp_path_factory.mktemp("tar"), webdataset(count))
    begin = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(begin + 1, count))
    batch = reader.with_classes((0, 1)).read(begin, end, 7, ())
    np.testing.assert_array_equal(batch.images, noise(count)[begin:end])
    np.testing.assert_array_equal(batch.labels, np.arange(begin, end) % 2)
    np.testing.assert_array_equal(batch.ids, np.arange(begin, end) + 7)
