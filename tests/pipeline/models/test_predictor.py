from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import registry
from pipeline.artifacts.storage import Storage
from pipeline.errors import ArtifactDamaged, ModelRejected, ResourcesMissing
from pipeline.models.predictor import (
    Device,
    Predictor,
    open_session,
    require_all_nodes,
    run_session_bound,
)
from tests.conftest import Artifacts
from tests.support.sample_data import make_images


def test_a_predictor_predicts_the_labels(artifacts: Artifacts) -> None:
    images, labels = make_images(50, seed=9)
    predictions = Predictor(artifacts.storage, artifacts.model).predict(images)
    assert predictions.probabilities.dtype == np.float32
    assert predictions.prediction.dtype == np.int64
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (predictions.prediction == labels).mean() > 0.95


def test_a_row_does_not_depend_on_its_neighbours(artifacts: Artifacts) -> None:
    images, _ = make_images(7, seed=9)
    predictor = Predictor(artifacts.storage, artifacts.model)
    alone = np.concatenate([predictor.predict(image[None]).probabilities for image in images])
    np.testing.assert_allclose(predictor.predict(images).probabilities, alone, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 50])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_device_memory_gives_the_same_predictions(
    artifacts: Artifacts, device: Device, rows: int
) -> None:
    if device == "cuda" and not cuda_works(artifacts):
        pytest.skip("no CUDA on this machine")
    images, _ = make_images(50, seed=9)
    folder = registry.model_folder(artifacts.model.name, artifacts.model.version)
    session = open_session(artifacts.storage.read(f"{folder}/model.onnx"), device=device)
    expected = Predictor(artifacts.storage, artifacts.model).predict(images[:rows])
    actual = run_session_bound(session, images[:rows], device)
    np.testing.assert_allclose(actual.probabilities, expected.probabilities, atol=1e-6)
    np.testing.assert_array_equal(actual.prediction, expected.prediction)


def test_a_changed_model_file_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    folder = registry.model_folder(artifacts.model.name, artifacts.model.version)
    data = bytearray(artifacts.storage.read(f"{folder}/model.onnx"))
    data[len(data) // 2] ^= 1
    Storage(str(tmp_path)).write(f"{folder}/model.onnx", bytes(data))
    with pytest.raises(ArtifactDamaged, match="its manifest says"):
        Predictor(Storage(str(tmp_path)), artifacts.model)


def test_tensors_other_than_those_of_the_manifest_are_refused(artifacts: Artifacts) -> None:
    other = artifacts.model.model_copy(update={"outputs": artifacts.model.outputs[::-1]})
    with pytest.raises(ModelRejected, match="has the outputs"):
        Predictor(artifacts.storage, other)


def test_a_predictor_names_its_provider(artifacts: Artifacts) -> None:
    assert Predictor(artifacts.storage, artifacts.model).provider == "CPUExecutionProvider"


def test_a_missing_device_is_an_error(artifacts: Artifacts) -> None:
    if cuda_works(artifacts):
        pytest.skip("CUDA works on this machine")
    with pytest.raises(ResourcesMissing, match="[uU]se --device cpu"):
        Predictor(artifacts.storage, artifacts.model, device="cuda")


def test_a_node_that_runs_on_another_device_is_an_error(artifacts: Artifacts) -> None:
    folder = registry.model_folder(artifacts.model.name, artifacts.model.version)
    session = open_session(artifacts.storage.read(f"{folder}/model.onnx"))
    with pytest.raises(ModelRejected, match="cannot run these nodes of the model: ArgMax, Cast, "):
        require_all_nodes(session, "CUDAExecutionProvider")


@pytest.mark.parametrize("module", ["pipeline.models.predictor", "pipeline.artifacts.registry"])
def test_prediction_needs_neither_torch_nor_ray(module: str) -> None:
    code = (
        f"import sys, {module}; print(sorted({{'torch', 'ray', 'starlette'}} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def cuda_works(artifacts: Artifacts) -> bool:
    try:
        Predictor(artifacts.storage, artifacts.model, device="cuda")
    except ResourcesMissing:
        return False
    return True
