"""Image files as rows: one each, in order of paths, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.storage import Storage
from pipeline.contract import Preparation
from pipeline.data.readers import image_folder
from pipeline.data.readers.image_folder import open_image_folder
from pipeline.data.readers.rows import Rows
from pipeline.errors import DataError
from tests.support.sources import encode_png, noise, write_pngs


def open_rows(folder: Path, **options: object) -> Rows:
    storage = Storage(str(folder))
    return Rows(tuple(open_image_folder(storage, storage.files(), **options)))  # type: ignore[arg-type]


@given(st.integers(1, 25), st.data())
def test_any_range_of_rows_equals_that_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, count: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(noise(count)):
        (folder / f"{number:03}.png").write_bytes(encode_png(image))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_folder, "IMAGES_PER_READER", 7)
        rows = open_rows(folder)
    begin = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(begin + 1, count))
    np.testing.assert_array_equal(rows.read(begin, end).images, noise(count)[begin:end])


def test_the_first_file_that_can_be_decoded_gives_the_size(tmp_path: Path) -> None:
    write_pngs(tmp_path, {"a": 3})
    (tmp_path / "a" / "0.png").write_bytes(b"\xff\xd8\xff no image")
    batch = open_rows(tmp_path).read(0, 3)
    assert [row.reason.partition(":")[0] for row in batch.rejects] == ["a/0.png"]
    np.testing.assert_array_equal(batch.images, noise(3)[1:])


def test_a_folder_without_one_image_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"a.png: It is neither a PNG nor a JPEG"):
        open_rows(tmp_path)


def test_a_file_too_large_for_an_image_is_never_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pngs(tmp_path, {"a": 2})
    monkeypatch.setattr(image_folder, "MAX_FILE_BYTES", 300)
    monkeypatch.setattr(image_folder, "SMALL_FILE_BYTES", 300)
    with (tmp_path / "a" / "1.png").open("r+b") as file:
        file.truncate(1 << 33)
    storage = Storage(str(tmp_path))
    content = image_folder.read_file(storage, "a/1.png", storage.fingerprint("a/1.png"))
    assert len(content) == 300


def test_only_a_change_of_a_file_that_was_read_is_an_error(tmp_path: Path) -> None:
    write_pngs(tmp_path, {"a": 9})
    rows = open_rows(tmp_path)
    (tmp_path / "a" / "5.png").write_bytes(b"other")
    rows.require_unchanged([(0, 5), (6, 9)])
    with pytest.raises(DataError, match="was changed while it was read"):
        rows.require_unchanged([(0, 2), (4, 6)])


def test_images_of_other_sizes_are_rejected_or_fitted(tmp_path: Path) -> None:
    write_pngs(tmp_path, {"a": 2})
    (tmp_path / "b.png").write_bytes(encode_png(noise(1, 9, (3, 9))[0]))
    refused = open_rows(tmp_path).read(0, 3)
    assert [row.id for row in refused.rejects] == [2]
    assert "3 x 9, but 6 x 6 is expected" in refused.rejects[0].reason
    fitted = open_rows(tmp_path, size=(6, 6), preparation=Preparation(fit="pad", invert="never"))
    assert len(fitted.read(0, 3).images) == 3
