from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.storage import Storage
from pipeline.contract import Predictions
from serving.protocol.types import InferRequest, Output
from serving.protocol.v2_response import build_reply
from tests.support.stripes_model import publish, stripe

PREDICTIONS = Predictions(np.array([[0.5, 0.25, 0.25]], np.float32), np.array([0]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelManifest:
    return publish(Storage(str(tmp_path_factory.mktemp("root"))))


def test_the_reply_has_the_requested_outputs(model: ModelManifest) -> None:
    request = InferRequest(stripe(0)[None], (Output("prediction"), Output("probabilities")), "a-7")
    assert json.loads(build_reply(model, request, PREDICTIONS).body) == {
        "model_name": "stripes",
        "model_version": model.version,
        "id": "a-7",
        "outputs": [
            {"name": "prediction", "shape": [1], "datatype": "INT64", "data": [0]},
            {
                "name": "probabilities",
                "shape": [1, 3],
                "datatype": "FP32",
                "data": [0.5, 0.25, 0.25],
            },
        ],
    }


def test_the_reply_carries_the_models_caveat(tmp_path: Path) -> None:
    model = publish(Storage(str(tmp_path)), caveat="made by hand")
    request = InferRequest(stripe(0)[None], (Output("prediction"),))
    response = json.loads(build_reply(model, request, PREDICTIONS).body)
    assert response["parameters"] == {"caveat": "made by hand"}
    assert "id" not in response


def test_float32_survives_json(model: ModelManifest) -> None:
    values = np.random.default_rng(0).random((100, 3), np.float32)
    request = InferRequest(np.zeros((100, 4, 6), np.uint8), (Output("probabilities"),))
    predictions = Predictions(values, np.zeros(100, np.int64))
    response = json.loads(build_reply(model, request, predictions).body)
    sent = np.array(response["outputs"][0]["data"], np.float32).reshape(100, 3)
    np.testing.assert_array_equal(sent, values)


def test_binary_outputs_follow_the_json_in_its_order(model: ModelManifest) -> None:
    outputs = (Output("prediction", binary=True), Output("probabilities"))
    body, json_bytes = build_reply(model, InferRequest(stripe(0)[None], outputs), PREDICTIONS)
    prediction, probabilities = json.loads(body[:json_bytes])["outputs"]
    assert prediction["parameters"] == {"binary_data_size": 8}
    assert "data" not in prediction
    assert probabilities["data"] == [0.5, 0.25, 0.25]
    assert body[json_bytes:] == (0).to_bytes(8, "little")


@pytest.mark.parametrize("binary", [False, True])
def test_the_best_classes_are_named_best_first(model: ModelManifest, binary: bool) -> None:
    outputs = (Output("probabilities", binary, num_classes=2),)
    body, json_bytes = build_reply(model, InferRequest(stripe(0)[None], outputs), PREDICTIONS)
    (tensor,) = json.loads(body[:json_bytes])["outputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("BYTES", [1, 2])
    if binary:
        names = (b"0.5:0:left", b"0.25:1:middle")
        expected = b"".join(len(name).to_bytes(4, "little") + name for name in names)
        assert body[json_bytes:] == expected
    else:
        assert tensor["data"] == ["0.5:0:left", "0.25:1:middle"]


def test_a_reply_names_at_most_all_classes_of_the_model(model: ModelManifest) -> None:
    outputs = (Output("probabilities", num_classes=99),)
    reply = json.loads(build_reply(model, InferRequest(stripe(0)[None], outputs), PREDICTIONS).body)
    assert reply["outputs"][0]["shape"] == [1, 3]
