from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.storage import Storage
from serving.errors import PayloadTooLarge, RequestInvalid
from serving.protocol.types import InferRequest, Output
from serving.protocol.v2_request import parse_raw, parse_request
from tests.support.stripes_model import publish

OUTPUTS = ("probabilities", "prediction")

IMAGES = np.arange(48, dtype=np.uint8).reshape(2, 4, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelManifest:
    return publish(Storage(str(tmp_path_factory.mktemp("root"))))


def body(**changes: Any) -> dict[str, Any]:
    image = {"name": "image", "shape": [2, 4, 6], "datatype": "UINT8", "data": IMAGES.tolist()}
    return {"inputs": [image | changes]}


def parse(model: ModelManifest, content: Any, max_rows: int = 8) -> InferRequest:
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
    return parse_request(encoded, None, model, max_rows=max_rows)


def parse_binary(
    model: ModelManifest, content: Any, tensor: bytes, json_bytes: int | None = None
) -> InferRequest:
    text = json.dumps(content).encode()
    size = len(text) if json_bytes is None else json_bytes
    return parse_request(text + tensor, size, model, max_rows=8)


def binary(size: Any, **changes: Any) -> dict[str, Any]:
    """Return the JSON of a request whose tensor follows it."""
    content = body(parameters={"binary_data_size": size}, **changes)
    if "data" not in changes:
        del content["inputs"][0]["data"]
    return content


@pytest.mark.parametrize("data", [IMAGES.tolist(), IMAGES.ravel().tolist()], ids=["nested", "flat"])
def test_data_may_be_nested_or_flat(model: ModelManifest, data: list[Any]) -> None:
    request = parse(model, body(data=data))
    assert request.images.dtype == np.uint8
    np.testing.assert_array_equal(request.images, IMAGES)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (Output("probabilities"), Output("prediction"))),
        ({"outputs": []}, (Output("probabilities"), Output("prediction"))),
        ({"outputs": [{"name": "prediction"}] * 2}, (Output("prediction"),)),
        (
            {"parameters": {"binary_data_output": True}},
            (Output("probabilities", binary=True), Output("prediction", binary=True)),
        ),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [
                    {"name": "prediction", "parameters": {"binary_data": False}},
                    {"name": "probabilities", "parameters": {"classification": 2}},
                ],
            },
            (Output("prediction"), Output("probabilities", binary=True, num_classes=2)),
        ),
    ],
)
def test_outputs_are_the_requested_ones_or_all(
    model: ModelManifest, fields: dict[str, Any], expected: tuple[Output, ...]
) -> None:
    assert parse(model, body() | fields).outputs == expected


def test_a_tensor_may_follow_the_json(model: ModelManifest) -> None:
    request = parse_binary(model, binary(48), IMAGES.tobytes())
    assert request.images.dtype == np.uint8
    np.testing.assert_array_equal(request.images, IMAGES)


@pytest.mark.parametrize(
    ("content", "tensor", "message"),
    [
        (binary(47), bytes(48), "47 and 48 bytes follow .* takes 48"),
        (binary(48), bytes(47), "48 and 47 bytes"),
        (binary(48), bytes(49), "48 and 49 bytes"),
        (binary(True, shape=[1, 4, 6]), bytes(24), "True and 24 bytes"),
        (binary("48"), bytes(48), "'48'"),
        (binary(-1), bytes(48), "-1"),
        (binary(48, data=[0] * 48), bytes(48), "data and binary_data_size"),
        (body(), bytes(48), "no input has binary_data_size"),
        (binary(2**64, shape=[2**32, 4, 6]), bytes(48), "rows, but at most 8 are allowed"),
    ],
)
def test_a_binary_tensor_must_have_its_declared_size(
    model: ModelManifest, content: Any, tensor: bytes, message: str
) -> None:
    with pytest.raises((RequestInvalid, PayloadTooLarge), match=message):
        parse_binary(model, content, tensor)


@pytest.mark.parametrize("json_bytes", [10**6, 3])
def test_the_json_must_have_its_declared_length(model: ModelManifest, json_bytes: int) -> None:
    with pytest.raises(RequestInvalid, match="bytes|not JSON"):
        parse_binary(model, binary(48), IMAGES.tobytes(), json_bytes)


def test_the_number_of_raw_pixels_gives_the_number_of_images(model: ModelManifest) -> None:
    request = parse_raw(IMAGES.tobytes(), model, binary=True, max_rows=2)
    np.testing.assert_array_equal(request.images, IMAGES)
    assert request.outputs == (Output("probabilities", True), Output("prediction", True))


@pytest.mark.parametrize("size", [0, 1, 23, 25])
def test_raw_pixels_must_be_whole_images(model: ModelManifest, size: int) -> None:
    with pytest.raises(RequestInvalid, match=f"has {size} bytes, but an image .* has 24"):
        parse_raw(bytes(size), model, binary=True, max_rows=2)


def test_the_number_of_rows_of_raw_pixels_is_limited(model: ModelManifest) -> None:
    with pytest.raises(PayloadTooLarge, match="3 rows, but at most 2 are allowed"):
        parse_raw(bytes(72), model, binary=True, max_rows=2)


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
        ({"data": [[[0] * 6] * 4, [[0] * 6] * 3 + [[0] * 5]]}, "not nested as its shape"),
        ({"data": [[[0] * 6] * 4, [[0] * 6] * 3]}, "not nested as its shape"),
        ({"data": [[[0] * 6] * 4, 0]}, "not nested as its shape"),
        ({"data": [[0] * 24] * 2}, "not nested as its shape"),
        ({"data": [[[[0]] * 6] * 4] * 2}, r"Value 0 .* is \[0\]"),
        ({"data": "AAAA"}, "not a list"),
        ({"data": None}, "not a list"),
    ],
)
def test_a_tensor_that_does_not_fit_the_model_is_refused(
    model: ModelManifest, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        parse(model, body(**changes))


@pytest.mark.parametrize("value", [True, False, 1.5, -1.0, -1, 256, 10**1000, "1", None, {}, 1e308])
def test_only_integers_from_0_to_255_are_pixels(model: ModelManifest, value: Any) -> None:
    with pytest.raises(RequestInvalid, match="Value 5 .* Send 0 to 255"):
        parse(model, body(data=[0] * 5 + [value] + [0] * 42))


def test_whole_floats_are_pixels(model: ModelManifest) -> None:
    request = parse(model, body(data=[float(value) for value in IMAGES.ravel()]))
    np.testing.assert_array_equal(request.images, IMAGES)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{}{}",
        b'{"inputs": [],}',
        b'{"inputs": [], "inputs": []}',
        b'{"inputs": NaN}',
        b'{"id": -Infinity, "inputs": []}',
        '{"inputs": []}'.encode("utf-16"),
        b'{"id": "\xff"}',
        rb'{"id": "\ud800"}',
        b"[" * 100_000,
        b"1" * 5000,
    ],
)
def test_a_body_that_is_not_strict_json_is_refused(model: ModelManifest, text: bytes) -> None:
    with pytest.raises(RequestInvalid, match="not JSON"):
        parse(model, text)


def values(model: ModelManifest, content: Any) -> Any:
    request = parse(model, content)
    return request.images.tolist(), request.outputs, request.id


@pytest.mark.parametrize(
    "content",
    [
        body(parameters=None),
        body() | {"id": None, "parameters": None, "outputs": None, "model_name": None},
        body() | {"outputs": [{"name": name, "parameters": None} for name in OUTPUTS]},
        body(a_new_field={}) | {"another": [1], "outputs": [{"name": n, "x": 1} for n in OUTPUTS]},
        b"\xef\xbb\xbf" + json.dumps(body()).encode(),
    ],
    ids=["input", "request", "output", "unknown fields", "byte order mark"],
)
def test_nulls_unknown_fields_and_a_byte_order_mark_change_nothing(
    model: ModelManifest, content: Any
) -> None:
    assert values(model, content) == values(model, body())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the body"),
        (None, "the body"),
        ({}, "'inputs': field required"),
        ({"inputs": []}, "Inputs are none"),
        (body() | {"id": 7}, "'id'"),
        (body() | {"parameters": {"x": []}}, "parameters"),
        (body() | {"outputs": [{"name": "logits"}]}, "'logits' is unknown. Ask for probabilities"),
        ({"inputs": body()["inputs"] * 2}, "send 'image' alone"),
        (body() | {"parameters": {"binary_data_output": 1}}, "binary_data_output is 1"),
        (
            body() | {"outputs": [{"name": "prediction", "parameters": {"binary_data": "x"}}]},
            "binary_data is 'x'",
        ),
        (
            body() | {"outputs": [{"name": "prediction", "parameters": {"classification": 1}}]},
            "Classification of prediction",
        ),
        (
            body() | {"outputs": [{"name": "probabilities", "parameters": {"classification": -1}}]},
            "is -1",
        ),
    ],
)
def test_json_that_is_not_an_infer_request_is_refused(
    model: ModelManifest, content: Any, message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        parse(model, content)


def test_the_number_of_rows_is_limited(model: ModelManifest) -> None:
    with pytest.raises(PayloadTooLarge, match="2 rows, but at most 1 are allowed"):
        parse(model, body(), max_rows=1)


@pytest.mark.parametrize(
    "content",
    [
        body(name="\n" * 100_000),
        body(shape=list(range(100_000))),
        body(data=["x" * 100_000] * 48),
        body() | {"parameters": {"x" * 100_000: []}},
        body() | {"outputs": [{"name": "é" * 100_000}]},
    ],
    ids=["name", "shape", "value", "parameter", "output"],
)
def test_messages_are_short_and_on_one_line(model: ModelManifest, content: Any) -> None:
    with pytest.raises(RequestInvalid) as error:
        parse(model, content)
    assert len(str(error.value)) < 400
    assert str(error.value).isascii()
    assert str(error.value).isprintable()
