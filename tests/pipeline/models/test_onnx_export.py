from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from pipeline.artifacts import registry
from pipeline.artifacts.commit import read_file
from pipeline.config import Export
from pipeline.data.shards import read_split
from pipeline.errors import ModelRejected
from pipeline.models import numpy_forward, predictor
from pipeline.models.classifier import Classifier
from pipeline.models.onnx_export import to_onnx
from pipeline.models.parity import UINT8_TOLERANCE, check_contract
from pipeline.models.quantize import quantize
from pipeline.stages.export import export
from pipeline.training.checkpoints import load_model
from tests.conftest import Artifacts


@pytest.fixture(scope="module")
def model_bytes(artifacts: Artifacts) -> bytes:
    model = artifacts.model
    folder = registry.model_folder(model.name, model.version)
    return read_file(artifacts.storage, folder, model.file("model.onnx"))


@pytest.fixture(scope="module")
def images(artifacts: Artifacts) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return read_split(artifacts.storage, artifacts.dataset, "test").images


def test_torch_onnxruntime_and_numpy_agree(
    artifacts: Artifacts,
    model_bytes: bytes,
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
) -> None:
    classifier = Classifier(load_model(artifacts.storage, artifacts.run))
    by_torch = classifier(torch.from_numpy(images))[0].detach().numpy()
    by_onnxruntime = predictor.run_session(
        predictor.open_session(model_bytes), images
    ).probabilities
    by_numpy = numpy_forward.forward(model_bytes, images)
    np.testing.assert_allclose(by_onnxruntime, by_numpy, atol=1e-5)
    np.testing.assert_allclose(by_torch, by_numpy, atol=1e-5)


def test_numpy_agrees_with_onnxruntime_on_uint8_weights(
    model_bytes: bytes, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    rounded = quantize(model_bytes)
    expected = predictor.run_session(predictor.open_session(rounded), images).probabilities
    np.testing.assert_allclose(numpy_forward.forward(rounded, images), expected, atol=1e-5)


def test_the_file_is_self_contained_and_names_its_origin(
    artifacts: Artifacts, model_bytes: bytes
) -> None:
    model = onnx.load_model_from_string(model_bytes)
    onnx.checker.check_model(model, full_check=True)
    assert all(not tensor.external_data for tensor in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["dataset"] == artifacts.dataset.ref
    assert properties["run"] == artifacts.run.run
    assert properties["classes"] == '["0", "1", "2"]'


def test_the_file_holds_no_local_path_and_is_the_same_every_time(
    artifacts: Artifacts, model_bytes: bytes
) -> None:
    classifier = Classifier(load_model(artifacts.storage, artifacts.run)).eval()
    assert to_onnx(classifier, artifacts.run) == model_bytes
    assert b"/pipeline/" not in model_bytes


def test_a_model_with_other_tensors_breaks_the_contract(
    artifacts: Artifacts, model_bytes: bytes
) -> None:
    session = predictor.open_session(model_bytes)
    inputs, outputs = artifacts.model.inputs, artifacts.model.outputs
    check_contract(session, inputs, outputs)
    with pytest.raises(ModelRejected, match="has the tensors"):
        check_contract(session, inputs, outputs[:1])


def test_exporting_again_finds_the_version(artifacts: Artifacts) -> None:
    assert export(Export(root=artifacts.root, run=artifacts.run.run)) == artifacts.model


def test_weights_as_uint8_predict_nearly_the_same(artifacts: Artifacts) -> None:
    settings = Export(root=artifacts.root, run=artifacts.run.run, uint8=True)
    model = export(settings)
    assert model.version != artifacts.model.version
    assert 0 < model.parity_max_difference <= UINT8_TOLERANCE.probability
    assert (model.weights, artifacts.model.weights) == ("uint8", "float32")
    assert (model.parity_rows, artifacts.model.parity_changed) == (90, 0)
    assert model.outputs == artifacts.model.outputs
    assert export(settings) == model
