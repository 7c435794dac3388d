"""Scores of a GPU: in class those of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.storage import Storage
from pipeline.config import Export
from pipeline.models.predictor import Predictor
from pipeline.stages.export import export
from tests.support.local_artifacts import write_dataset, write_run
from tests.support.sample_data import make_images


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("rows", [1, 61, 4096])
def test_a_gpu_predicts_what_the_cpu_predicts(tmp_path: Path, model: str, rows: int) -> None:
    storage = Storage(str(tmp_path))
    run = write_run(storage, write_dataset(storage), model=model)
    version = export(Export(root=str(tmp_path), run=run.run))
    images, _ = make_images(rows, seed=3)
    gpu = Predictor(storage, version, device="cuda")
    assert gpu.provider == "CUDAExecutionProvider"
    actual, expected = gpu.predict(images), Predictor(storage, version).predict(images)
    np.testing.assert_allclose(actual.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_array_equal(actual.prediction, expected.prediction)
