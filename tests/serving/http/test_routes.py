"""The answers of the HTTP routes."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.models.predictor import Predictor
from serving.http.routes import build_routes
from serving.model.watcher import ModelWatcher
from tests.serving.http.helpers import (
    Client,
    error_message,
    infer_body,
    png,
    publish_and_watch,
    settings,
)
from tests.support.stripes_model import STRIPES, stripe


def test_a_healthy_server_is_live_and_ready(client: Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata_is_served_without_a_redirect(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.json()["name"] == "ray-onnx-pipeline"


def test_a_model_is_found_by_name_and_by_version(client: Client, predictor: Predictor) -> None:
    path = f"/v2/models/stripes/versions/{predictor.model.version}"
    assert client.get("/v2/models/stripes").json() == client.get(path).json()
    for ready in ("/v2/models/stripes/ready", f"{path}/ready"):
        answer = client.get(ready).json()
        assert answer == {"name": "stripes", "ready": True, "version": predictor.model.version}


@pytest.mark.parametrize("version", ["", "/versions/{}"])
def test_infer_returns_the_predictions_of_the_predictor(
    client: Client, predictor: Predictor, version: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, *STRIPES.shape), np.uint8)
    expected = predictor.predict(images)
    path = f"/v2/models/stripes{version.format(predictor.model.version)}/infer"
    response = client.post(path, json=infer_body(images, id="seven"))
    answer = response.json()
    probabilities, prediction = answer["outputs"]
    assert response.headers["content-type"] == "application/json"
    assert (answer["id"], answer["model_version"]) == ("seven", predictor.model.version)
    np.testing.assert_array_equal(probabilities["data"], expected.probabilities.ravel())
    np.testing.assert_array_equal(prediction["data"], expected.prediction)


def test_predictions_of_more_rows_than_a_batch_keep_their_order(client: Client) -> None:
    labels = [k % 3 for k in range(16)]
    images = np.stack([stripe(k) for k in labels])
    answer = client.post("/v2/models/stripes/infer", json=infer_body(images)).json()
    assert answer["outputs"][1]["data"] == labels


def test_predict_names_the_class_of_an_image_file(client: Client, predictor: Predictor) -> None:
    answer = client.post("/predict", content=png(stripe(2))).json()
    probabilities = answer.pop("probabilities")
    assert answer == {
        "prediction": 2,
        "class_name": "right",
        "inverted": False,
        "fitted": False,
        "model_name": "stripes",
        "model_version": predictor.model.version,
    }
    assert list(probabilities) == ["left", "middle", "right"]
    assert probabilities["right"] == pytest.approx(np.e**8 / (np.e**8 + 2))


def test_predict_carries_the_models_caveat(tmp_path: Path) -> None:
    watcher = publish_and_watch(str(tmp_path), caveat="made by hand")
    client = Client(build_routes(watcher, settings("unused")))
    assert client.post("/predict", content=png(stripe(0))).json()["caveat"] == "made by hand"


def test_raw_pixels_get_a_reply_in_binary_or_json(client: Client, predictor: Predictor) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, *STRIPES.shape), np.uint8)
    expected = predictor.predict(images)
    path, raw = "/v2/models/stripes/infer", {"Inference-Header-Content-Length": "0"}
    binary = client.post(path, content=images.tobytes(), headers=raw)
    size = int(binary.headers["inference-header-content-length"])
    assert binary.headers["content-type"] == "application/octet-stream"
    assert binary.content[size:] == expected.probabilities.tobytes() + expected.prediction.tobytes()
    wish = raw | {"Accept": "application/json"}
    answer = client.post(path, content=images.tobytes(), headers=wish).json()
    assert answer["outputs"][1]["data"] == expected.prediction.tolist()


def test_v1_returns_the_predictions_of_the_predictor(client: Client, predictor: Predictor) -> None:
    image = stripe(1)
    encoded = base64.b64encode(png(image)).decode()
    instances = [image.tolist(), image.ravel().tolist(), {"image": image.tolist()}]
    body = {"instances": [*instances, {"b64": encoded}]}
    answers = client.post("/v1/models/stripes:predict", json=body).json()["predictions"]
    expected = predictor.predict(image[None]).probabilities[0].tolist()
    assert answers == [{"probabilities": expected, "prediction": 1}] * 4
    assert client.get("/v1/models").json() == {"models": ["stripes"]}
    assert client.get("/v1/models/stripes").json()["ready"] is True


@pytest.mark.parametrize(
    ("instances", "status", "message"),
    [
        (None, 400, "Send {.instances.: "),
        ([], 400, "one or more"),
        ([[0] * 23], 400, "23 values"),
        ([{"b64": "?"}], 400, "not base64"),
        ([{"b64": ""}], 400, "empty"),
        ([{"url": "file:///etc/passwd"}], 400, "fields other than"),
        ([[0] * 24] * 17, 413, "17 instances"),
    ],
)
def test_a_body_that_is_not_a_v1_request_is_refused(
    client: Client, instances: Any, status: int, message: str
) -> None:
    response = client.post("/v1/models/stripes:predict", json={"instances": instances})
    assert re.search(message, error_message(response, status))


def test_several_images_are_files_of_a_form(client: Client) -> None:
    big = np.pad(np.kron(255 - stripe(2), np.ones((20, 20), np.uint8)), 9, constant_values=255)
    files = [("a", png(stripe(0))), ("b", png(stripe(1))), ("b", png(big))]
    answer = client.post("/predict", files=files).json()
    assert [p["class_name"] for p in answer["predictions"][:2]] == ["left", "middle"]
    assert [(p["inverted"], p["fitted"]) for p in answer["predictions"]] == [
        (False, False),
        (False, False),
        (True, True),
    ]


@pytest.mark.parametrize("kind", ["form", "file", "b64"])
def test_the_pixels_of_a_request_have_a_bound(watcher: ModelWatcher, kind: str) -> None:
    """Refuse before decoding: of the last image only the header is there."""
    large = png(np.zeros((60, 100), np.uint8))
    images = [large, large[:40]]
    limits = settings("unused").model_copy(update={"max_request_pixels": 5_999})
    client = Client(build_routes(watcher, limits))
    if kind == "form":
        response = client.post("/predict", files=[("image", image) for image in images])
    elif kind == "file":
        response = client.post("/predict", content=images[1])
    else:
        instances = [{"b64": base64.b64encode(image).decode()} for image in images]
        response = client.post("/v1/models/stripes:predict", json={"instances": instances})
    assert "but at most 5,999 are allowed" in error_message(response, 413)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")],
)
def test_the_page_loads_nothing_from_elsewhere(client: Client, path: str, kind: str) -> None:
    response = client.get(path)
    assert response.headers["content-type"].startswith(kind)
    assert response.headers["content-security-policy"] == "default-src 'self'"
    assert "//" not in re.sub(r"^ *//.*|  //.*", "", response.text, flags=re.MULTILINE)


def test_the_index_names_the_served_model(client: Client, predictor: Predictor) -> None:
    (entry,) = client.post("/v2/repository/index").json()
    assert (entry["name"], entry["state"]) == ("stripes", "READY")
    assert entry["version"] == predictor.model.version


def test_statistics_count_requests_and_model_calls(tmp_path: Path) -> None:
    client = Client(build_routes(publish_and_watch(str(tmp_path)), settings("unused")))
    body = infer_body(np.zeros((6, *STRIPES.shape), np.uint8))
    client.post("/v2/models/stripes/infer", json=body)
    (stats,) = client.get("/v2/models/stripes/stats").json()["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (6, 2)
    assert stats["inference_stats"]["success"]["count"] == 1
    assert stats["inference_stats"]["fail"]["count"] == 0
    assert stats["inference_stats"]["queue"]["count"] == 1
    assert {batch["batch_size"] for batch in stats["batch_stats"]} == {4, 2}
    assert client.get("/v2/models/stats").json()["model_stats"] == [stats]
