"""CSV files of pixels: what they hold, ranges of rows, and files that are damaged or hostile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.storage import Storage
from pipeline.contract import Preparation
from pipeline.data.readers import csv
from pipeline.data.readers.csv import CsvReader, open_csv
from pipeline.data.readers.rows import RowBatch
from pipeline.errors import DataError
from tests.support.sources import csv_lines, noise, write_csv


def open_lines(folder: Path, lines: Sequence[str], **options: Any) -> CsvReader:
    reader = open_csv(Storage(str(folder)), write_csv(folder / "x.csv", lines).name, **options)
    assert reader
    return reader


def read_all(reader: CsvReader, columns: Sequence[str] = ()) -> RowBatch:
    return reader.with_classes((0, 1)).read(0, reader.entry.rows or 0, 0, columns)


def test_rows_are_images_and_labels(tmp_path: Path) -> None:
    reader = open_lines(tmp_path, csv_lines())
    assert reader.count_labels() == {"0": 6, "1": 6}
    batch = read_all(reader)
    np.testing.assert_array_equal(batch.images, noise(12))
    np.testing.assert_array_equal(batch.labels, np.arange(12) % 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: ["\ufeff" + lines[0], *lines[1:]],
        lambda lines: ["\ufeff" + lines[1], *lines[2:]],
        lambda lines: [line + "\r" for line in lines],
        lambda lines: [f'"{line}"'.replace(",", '","') for line in lines],
        lambda lines: [lines[0].replace("label", "Class"), *lines[1:]],
        lambda lines: [f"id,{lines[0]},path", *(f"7,{line},a b" for line in lines[1:])],
        lambda lines: [",".join([*line.split(",")[1:], line.split(",")[0]]) for line in lines],
        lambda lines: [line.replace(",", ".0,") if i else line for i, line in enumerate(lines)],
        lambda lines: [lines[0].replace("pixel", ""), *lines[1:]],
        lambda lines: [",".join(map(str, range(37))), *lines[1:]],
    ],
)
def test_header_order_quotes_and_line_ends_may_vary(tmp_path: Path, change: Any) -> None:
    batch = read_all(open_lines(tmp_path, change(csv_lines())))
    np.testing.assert_array_equal(batch.images, noise(12))
    np.testing.assert_array_equal(batch.labels, np.arange(12) % 2)


def test_a_last_line_without_an_end_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("\n".join(csv_lines(5)))
    reader = open_csv(Storage(str(tmp_path)), "x.csv")
    assert reader
    np.testing.assert_array_equal(read_all(reader).images, noise(5))


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
@pytest.mark.parametrize("text", ["", csv_lines()[0]])
def test_a_file_without_rows_has_no_reader(tmp_path: Path, text: str, end: str) -> None:
    (tmp_path / "x.csv").write_text(text + end)
    assert open_csv(Storage(str(tmp_path)), "x.csv") is None


def test_without_a_header_a_square_of_numbers_has_no_label(tmp_path: Path) -> None:
    reader = open_lines(tmp_path, ["1,2,3,4"] * 3)
    assert (reader.labelled, reader.shape) == (False, (2, 2))


def test_labels_may_be_text(tmp_path: Path) -> None:
    lines = csv_lines()
    named = [f"{('dog', 'cat')[row % 2]}{line[1:]}" for row, line in enumerate(lines[1:])]
    reader = open_lines(tmp_path, [lines[0], *named])
    assert reader.count_labels() == {"cat": 6, "dog": 6}
    batch = reader.with_classes(("cat", "dog")).read(0, 12, 0, ())
    np.testing.assert_array_equal(batch.labels, (np.arange(12) + 1) % 2)


def test_other_columns_pass_through_as_text(tmp_path: Path) -> None:
    lines = csv_lines()
    more = [lines[0] + ",key", *(f"{line},{row:03}" for row, line in enumerate(lines[1:]))]
    batch = read_all(open_lines(tmp_path, more), ["key"])
    assert batch.columns["key"].to_pylist() == [f"{row:03}" for row in range(12)]
    with pytest.raises(DataError, match="has no column 'other'"):
        read_all(open_lines(tmp_path, more), ["other"])


@pytest.mark.parametrize("value", ["-1", "256", "0.5", "nan", "inf", "1e300", "", "99999999999"])
def test_a_value_that_is_no_pixel_is_a_rejected_row(tmp_path: Path, value: str) -> None:
    lines = csv_lines()
    lines[3] = f"1,{value}," + lines[3].split(",", 2)[2]
    batch = read_all(open_lines(tmp_path, lines))
    assert [row.id for row in batch.rejects] == [2]
    assert batch.rejects[0].reason == "a pixel is not an integer from 0 to 255"
    np.testing.assert_array_equal(batch.images, np.delete(noise(12), 2, axis=0))


@pytest.mark.parametrize("label", ["-1", "2", "0.5", "nan", "inf", "1e300", ""])
def test_a_label_that_is_no_class_is_a_rejected_row(tmp_path: Path, label: str) -> None:
    lines = csv_lines()
    lines[3] = label + "," + lines[3].split(",", 1)[1]
    batch = read_all(open_lines(tmp_path, lines))
    assert [row.id for row in batch.rejects] == [2]


def test_a_blank_line_is_a_rejected_row_but_not_at_the_end(tmp_path: Path) -> None:
    lines = csv_lines()
    batch = read_all(open_lines(tmp_path, [*lines[:5], "", *lines[5:], "", "\r", ""]))
    assert [row.id for row in batch.rejects] == [4]
    assert batch.rejects[0].reason == "the label is missing"
    np.testing.assert_array_equal(batch.images, noise(12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:5], "1,2,3", *lines[5:]], "Expected 37 columns, got 3"),
        (lambda lines: [*lines[:5], lines[5] + ",1"], "Expected 37 columns, got 38"),
        (lambda lines: [*lines[:5], lines[5] + "abc"], "conversion error to float"),
        (lambda lines: [*lines[:5], '1,"2\n' + lines[5][2:]], "could not be read as CSV"),
    ],
)
def test_lines_that_are_no_rows_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    reader = open_lines(tmp_path, change(csv_lines()))
    with pytest.raises(DataError, match=message):
        read_all(reader)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfel\0a\0", "could not be read as CSV"),
        (b"\x89PNG\r\n\x1a\n", "could not be read as CSV"),
        (b"path,label\na.png,cat\n", "has no columns of pixels"),
        (b"label,pixel0,pixel0\n1,2,3\n", "several columns of one name"),
        (b"label,pixel0,pixel1\n1,2,3\n", "2 pixels, which is not a square"),
        (b"\0" * 99 + b"\n", "no columns of pixels"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_csv(Storage(str(tmp_path)), "x.csv")


OPEN_LONG_LINE = r"""
import re, sys
from pipeline.artifacts.storage import Storage
from pipeline.data.readers.csv import open_csv
from pipeline.errors import DataError
try:
    open_csv(Storage(sys.argv[1]), "x.csv")
except DataError as error:
    print(error)
print(int(re.findall(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[0]) >> 10)
"""


@pytest.mark.parametrize("start", [b"", b"label,pixel0\n1,2\n"])
def test_a_field_of_two_gib_is_refused_in_bounded_memory(tmp_path: Path, start: bytes) -> None:
    with (tmp_path / "x.csv").open("wb") as file:
        file.write(start)
        file.truncate(1 << 31)
    command = [sys.executable, "-c", OPEN_LONG_LINE, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    message, peak_mib = result.stdout.splitlines()
    assert "a line is longer than 67,108,864 bytes" in message
    assert int(peak_mib) < 600


@given(st.integers(1, 40), st.integers(1, 2000), st.data())
def test_any_range_of_rows_equals_that_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, count: int, chunk: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv, "CHUNK_BYTES", chunk)
        reader = open_lines(tmp_path_factory.mktemp("csv"), csv_lines(count))
        begin = data.draw(st.integers(0, count - 1))
        end = data.draw(st.integers(begin + 1, count))
        batch = reader.with_classes((0, 1)).read(begin, end, 100, ())
    np.testing.assert_array_equal(batch.images, noise(count)[begin:end])
    np.testing.assert_array_equal(batch.labels, np.arange(begin, end) % 2)
    np.testing.assert_array_equal(batch.ids, np.arange(begin, end) + 100)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, as_rows: bool
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    start = "\n".join(csv_lines(3)).encode() if as_rows else b""
    (folder / "x.csv").write_bytes(start + content)
    try:
        reader = open_csv(Storage(str(folder)), "x.csv", preparation=Preparation(fit="stretch"))
        batch = read_all(reader) if reader else None
    except DataError:
        return
    if reader and batch:
        assert len(batch.ids) + len(batch.rejects) == reader.entry.rows
