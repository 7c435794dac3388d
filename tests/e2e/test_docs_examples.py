"""The Python examples of the documentation run as printed, in order, page by page."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.registry import promote
from pipeline.artifacts.storage import Storage
from pipeline.config import Data, Score
from pipeline.data.sources import open_source
from pipeline.stages.score import score
from tests.conftest import Artifacts
from tests.support.servers import served_in_thread
from tests.test_docs import FENCE, REPOSITORY


@pytest.fixture
def folder(artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with `artifacts/`, whose model `bars/production` stands in for MNIST's."""
    root = shutil.copytree(artifacts.root, tmp_path / "artifacts")
    promote(Storage(str(root)), artifacts.model.ref, "production")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_pets(folder: Path) -> None:
    """Write images of 28 x 28 pixels, three of each class and split, as SPLIT/CLASS/N.png."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = random.integers(0, 256, (28, 28), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def run_examples(page: str, *, port: int = 0) -> dict[str, Any]:
    """Run a page's Python blocks in one namespace, which is returned."""
    namespace = dict[str, Any]()
    for language, code in FENCE.findall((REPOSITORY / "docs" / page).read_text()):
        if language == "python":
            code = code.replace("mnist", "bars").replace(":8000", f":{port}")
            exec(compile(code, page, "exec"), namespace)
    return namespace


def test_examples_of_the_python_api_run(
    folder: Path, artifacts: Artifacts, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pets(folder / "pets")
    with served_in_thread(folder / "artifacts", "bars/production") as port:
        names = run_examples("python-api.md", port=port)
    test, answer = names["test"], names["answer"]
    assert test.images.shape == (90, 12, 10)
    expected = names["predictor"].predict(test.images)
    np.testing.assert_array_equal(answer.prediction, expected.prediction)
    np.testing.assert_array_equal(answer.probabilities, expected.probabilities)
    assert names["evaluation"] == artifacts.evaluation
    assert names["sink"].manifest.rows == {"train": 6, "val": 6, "test": 6}
    printed = capsys.readouterr().out
    assert "404 " in printed
    assert "'unknown'" in printed
    assert "uint8 (90, 12, 10)" in printed


def test_example_of_a_parquet_source_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples("your-own-images.md")
    os.link("train-00000.parquet", "test-00000.parquet")
    source = open_source(Data(name="pets", source=str(tmp_path)))
    assert source.shape == (32, 48)
    assert source.class_names == ("cat", "dog")


def test_example_of_reading_scores_runs(
    folder: Path, artifacts: Artifacts, capsys: pytest.CaptureFixture[str]
) -> None:
    split = f"{artifacts.dataset.ref}/test"
    score(Score(model="bars/production", input=(split,), output="scores"))
    run_examples("scoring.md")
    assert f"{artifacts.model.ref} scored 90 rows" in capsys.readouterr().out


def test_example_of_the_tutorial_runs() -> None:
    run_examples("tutorial.md")
