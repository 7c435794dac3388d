from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.storage import Storage
from pipeline.config import Export, Show
from pipeline.data.shards import read_split
from pipeline.errors import SettingError
from pipeline.stages.export import export
from pipeline.stages.show import draw, show
from tests.conftest import Artifacts
from tests.support.local_artifacts import write_dataset, write_run


def test_a_model_is_shown_with_its_table_its_graph_and_a_digit(
    artifacts: Artifacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "digit.png"
    show(Show(root=artifacts.root, model=artifacts.model.ref, index=3, save=str(file)))
    split = read_split(artifacts.storage, artifacts.dataset, "test")
    np.testing.assert_array_equal(np.asarray(Image.open(file)), split.images[3])
    out = capsys.readouterr().out
    assert "Total parameters: 1,987" in out
    assert "Total parameters memory: 7,948 bytes" in out
    assert "flowchart TD" in out
    assert "true label" in out
    assert "the same in numpy differs from onnxruntime by at most" in out


def test_a_model_with_uint8_weights_is_shown(
    artifacts: Artifacts, capsys: pytest.CaptureFixture[str]
) -> None:
    rounded = export(Export(root=artifacts.root, run=artifacts.run.run, uint8=True))
    show(Show(root=artifacts.root, model=rounded.ref))
    assert "the same in numpy differs from onnxruntime by at most" in capsys.readouterr().out


def test_one_digit_is_read_from_its_shard_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(tmp_path))
    dataset = write_dataset(storage)
    model = export(Export(root=storage.root, run=write_run(storage, dataset).run))
    for number, entry in enumerate(dataset.shards("test")):
        if number != 1:
            storage.delete(f"datasets/{dataset.ref}/{entry.path}")
    show(Show(root=storage.root, model=model.ref, index=79))
    assert "true label" in capsys.readouterr().out


def test_an_image_beyond_the_split_is_refused(artifacts: Artifacts) -> None:
    with pytest.raises(SettingError, match="--index is 90, but `test` has 90 images"):
        show(Show(root=artifacts.root, model=artifacts.model.ref, index=90))


def test_a_black_pixel_is_a_space_and_a_white_one_a_full_block() -> None:
    image = np.array([[0, 255], [255, 0], [0, 0]], np.uint8)
    assert draw(image) == "  ██\n██\n"
