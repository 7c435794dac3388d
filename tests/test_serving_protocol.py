import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.manifest import ModelManifest
from pipeline.predictor import Predictions
from pipeline.storage import Storage
from serving import protocol
from serving.errors import PayloadTooLarge, RequestInvalid
from tests.models import STRIPES, publish, stripe

IMAGES = np.arange(48, dtype=np.uint8).reshape(2, 4, 6)
ANSWER = Predictions(np.array([[0.5, 0.25, 0.25]], np.float32), np.array([0]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelManifest:
    return publish(Storage(str(tmp_path_factory.mktemp("root"))))


def body(**changes: Any) -> dict[str, Any]:
    image = {"name": "image", "shape": [2, 4, 6], "datatype": "UINT8", "data": IMAGES.tolist()}
    return {"inputs": [image | changes]}


def parse(model: ModelManifest, content: Any, max_rows: int = 8) -> protocol.InferRequest:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return protocol.parse_request(data, model, max_rows=max_rows)


@pytest.mark.parametrize("data", [IMAGES.tolist(), IMAGES.ravel().tolist()], ids=["nested", "flat"])
def test_data_may_be_nested_or_flat(model: ModelManifest, data: list[Any]) -> None:
    request = parse(model, body(data=data))
    assert request.images.dtype == np.uint8
    np.testing.assert_array_equal(request.images, IMAGES)


def test_all_outputs_are_sent_unless_some_are_asked_for(model: ModelManifest) -> None:
    assert parse(model, body()).outputs == ("probabilities", "prediction")
    assert parse(model, body() | {"outputs": []}).outputs == ("probabilities", "prediction")
    wanted = {"outputs": [{"name": "prediction", "parameters": {"binary_data": False}}]}
    assert parse(model, body() | wanted).outputs == ("prediction",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "input"}, "Inputs are 'input'"),
        ({"datatype": "FP32"}, "'FP32'.*Send UINT8"),
        ({"shape": [4, 6], "data": [0] * 24}, r"\[4, 6\].*\[-1, 4, 6\]"),
        ({"shape": [2, 6, 4]}, r"\[2, 6, 4\]"),
        ({"shape": [0, 4, 6], "data": []}, "at least one image"),
        ({"shape": [-1, 4, 6]}, "at least one image"),
        ({"shape": [2.0, 4, 6]}, "inputs.0.shape.0"),
        ({"shape": [True, 4, 6]}, "inputs.0.shape.0"),
        ({"shape": [1, 4, 6]}, "48 values, but its shape .1, 4, 6. holds 24"),
        ({"data": [0] * 47}, "47 values, but its shape .2, 4, 6. holds 48"),
        ({"data": [[[0] * 6] * 4, [[0] * 6] * 3 + [[0] * 5]]}, "nested otherwise"),
        ({"data": [[[0] * 6] * 4, [[0] * 6] * 3]}, "nested otherwise"),
        ({"data": [[[0] * 6] * 4, 0]}, "nested otherwise"),
        ({"data": [[0] * 24] * 2}, "nested otherwise"),
        ({"data": [[[[0]] * 6] * 4] * 2}, r"Value 0 .* is \[0\]"),
        ({"data": "AAAA"}, "no list"),
        ({"data": None}, "no list"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(
    model: ModelManifest, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        parse(model, body(**changes))


@pytest.mark.parametrize("value", [True, False, 1.0, -1, 256, 10**1000, "1", None, {}, 1e308])
def test_only_integers_of_a_byte_are_pixels(model: ModelManifest, value: Any) -> None:
    with pytest.raises(RequestInvalid, match="Value 5 .* Send 0 to 255"):
        parse(model, body(data=[0] * 5 + [value] + [0] * 42))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{}{}",
        b'{"inputs": [],}',
        b'{"inputs": NaN}',
        b'{"id": -Infinity, "inputs": []}',
        b'\xef\xbb\xbf{"inputs": []}',
        '{"inputs": []}'.encode("utf-16"),
        b'{"id": "\xff"}',
        rb'{"id": "\ud800"}',
        b"[" * 100_000,
        b"1" * 5000,
    ],
)
def test_what_is_not_strict_json_is_refused(model: ModelManifest, text: bytes) -> None:
    with pytest.raises(RequestInvalid, match="not JSON"):
        parse(model, text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the body"),
        (None, "the body"),
        ({}, "'inputs': field required"),
        ({"inputs": []}, "Inputs are none"),
        (body() | {"id": 7}, "'id'"),
        (body() | {"output": []}, "'output': extra"),
        (body() | {"parameters": {"x": []}}, "parameters"),
        (body() | {"outputs": [{"name": "logits"}]}, "'logits' is unknown. Ask for probabilities"),
        ({"inputs": body()["inputs"] * 2}, "send 'image' alone"),
    ],
)
def test_what_is_not_an_infer_request_is_refused(
    model: ModelManifest, content: Any, message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        parse(model, content)


def test_rows_are_bounded(model: ModelManifest) -> None:
    with pytest.raises(PayloadTooLarge, match="2 rows, but one may have 1"):
        parse(model, body(), max_rows=1)


@pytest.mark.parametrize(
    "content",
    [
        body(name="\n" * 100_000),
        body(shape=list(range(100_000))),
        body(data=["x" * 100_000] * 48),
        body() | {"x" * 100_000: 1},
        body() | {"outputs": [{"name": "é" * 100_000}]},
    ],
    ids=["name", "shape", "value", "field", "output"],
)
def test_messages_echo_little_on_one_line(model: ModelManifest, content: Any) -> None:
    with pytest.raises(RequestInvalid) as error:
        parse(model, content)
    assert len(str(error.value)) < 400
    assert str(error.value).isascii()
    assert str(error.value).isprintable()


def test_the_response_has_what_was_asked_for(model: ModelManifest) -> None:
    request = protocol.InferRequest(stripe(0)[None], ("prediction", "probabilities"), "a-7")
    assert json.loads(protocol.build_response(model, request, ANSWER)) == {
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


def test_the_response_carries_the_models_caveat(tmp_path: Path) -> None:
    model = publish(Storage(str(tmp_path)), caveat="made by hand")
    request = protocol.InferRequest(stripe(0)[None], ("prediction",), None)
    response = json.loads(protocol.build_response(model, request, ANSWER))
    assert response["parameters"] == {"caveat": "made by hand"}
    assert "id" not in response


def test_float32_survives_json(model: ModelManifest) -> None:
    values = np.random.default_rng(0).random((100, 3), np.float32)
    request = protocol.InferRequest(np.zeros((100, 4, 6), np.uint8), ("probabilities",), None)
    answer = Predictions(values, np.zeros(100, np.int64))
    response = json.loads(protocol.build_response(model, request, answer))
    sent = np.array(response["outputs"][0]["data"], np.float32).reshape(100, 3)
    np.testing.assert_array_equal(sent, values)


def test_model_metadata_describes_the_tensors(model: ModelManifest) -> None:
    assert protocol.model_metadata(model) == {
        "name": "stripes",
        "versions": [model.version],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *STRIPES.shape]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "prediction", "datatype": "INT64", "shape": [-1]},
        ],
    }


def test_server_metadata_has_the_version_of_the_package() -> None:
    assert protocol.SERVER["version"] == version("ray-onnx-pipeline")
