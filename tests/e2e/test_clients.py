"""Public clients, a browser, and the client of this project, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.types import InferenceRequest
from playwright.sync_api import Page, expect

from pipeline.artifacts.registry import promote
from pipeline.contract import Predictions
from pipeline.models.predictor import Predictor
from serving.client import AsyncClient, Client, ServerError
from tests.support.browser import CHROMIUM, open_page
from tests.support.servers import Server, started
from tests.support.stripes_model import STRIPES, publish

IMAGES = np.random.default_rng(0).integers(0, 256, (40, *STRIPES.shape), np.uint8)
SWAPS = 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(str(tmp_path_factory.mktemp("root"))) as server:
        yield server


@pytest.fixture(scope="module")
def expected(server: Server) -> Predictions:
    return Predictor(server.storage, server.model).predict(IMAGES)


def address(server: Server) -> str:
    return server.url("").removeprefix("http://")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_triton_infers_in_every_mix(
    server: Server,
    expected: Predictions,
    binary_in: bool,
    binary_out: bool | None,
    compression: str | None,
) -> None:
    image = triton.InferInput("image", IMAGES.shape, "UINT8")
    image.set_data_from_numpy(IMAGES, binary_data=binary_in)
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput("prediction", binary_data=binary_out)]
        outputs.append(triton.InferRequestedOutput("probabilities", binary_data=not binary_out))
    with triton.InferenceServerClient(address(server)) as client:
        result = client.infer(
            "stripes",
            [image],
            outputs=outputs,
            request_id="7",
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
    np.testing.assert_array_equal(result.as_numpy("probabilities"), expected.probabilities)
    np.testing.assert_array_equal(result.as_numpy("prediction"), expected.prediction)
    assert result.get_response()["id"] == "7"


def test_triton_finds_health_metadata_and_statistics(server: Server) -> None:
    version = server.model.version
    with triton.InferenceServerClient(address(server)) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("stripes")
        assert client.is_model_ready("stripes", version)
        assert not client.is_model_ready("stripes", "0" * 12)
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata("stripes")["versions"][0] == version
        assert client.get_model_config("stripes")["max_batch_size"] > 0
        assert client.get_model_repository_index()[0]["state"] == "READY"
        (stats,) = client.get_inference_statistics("stripes")["model_stats"]
        assert stats["version"] == version


def test_triton_gets_the_best_classes(server: Server, expected: Predictions) -> None:
    image = triton.InferInput("image", IMAGES.shape, "UINT8")
    image.set_data_from_numpy(IMAGES)
    output = triton.InferRequestedOutput("probabilities", class_count=2)
    with triton.InferenceServerClient(address(server)) as client:
        names = client.infer("stripes", [image], outputs=[output]).as_numpy("probabilities")
    assert names.shape == (len(IMAGES), 2)
    best = [int(name.decode().split(":")[1]) for name in names[:, 0]]
    assert best == expected.prediction.tolist()


def test_triton_gets_the_error_message(server: Server) -> None:
    image = triton.InferInput("image", [1, 2], "UINT8")
    image.set_data_from_numpy(np.zeros((1, 2), np.uint8))
    with (
        triton.InferenceServerClient(address(server)) as client,
        pytest.raises(triton.InferenceServerException, match="the model takes"),
    ):
        client.infer("stripes", [image])


def test_triton_infers_in_an_event_loop(server: Server, expected: Predictions) -> None:
    async def infer() -> Any:
        image = triton_aio.InferInput("image", IMAGES.shape, "UINT8")
        image.set_data_from_numpy(IMAGES)
        async with triton_aio.InferenceServerClient(address(server)) as client:
            return await client.infer("stripes", [image])

    probabilities = asyncio.run(infer()).as_numpy("probabilities")
    np.testing.assert_array_equal(probabilities, expected.probabilities)


def test_open_inference_client_reads_typed_replies(server: Server, expected: Predictions) -> None:
    tensor = {
        "name": "image",
        "shape": list(IMAGES.shape),
        "datatype": "UINT8",
        "data": IMAGES.ravel().tolist(),
    }
    request = InferenceRequest.parse_obj({"inputs": [tensor], "id": "7"})
    with httpx.Client() as http:
        client = OpenInferenceClient(base_url=server.url(""), httpx_client=http)
        client.check_server_readiness()
        assert client.read_model_metadata("stripes").platform == "onnx_onnxv1"
        reply = client.model_infer("stripes", request=request)
    outputs = {output.name: output.data.__root__ for output in reply.outputs}
    assert reply.id == "7"
    assert [float(str(value)) for value in outputs["prediction"]] == expected.prediction.tolist()


@pytest.mark.parametrize("max_rows", [1024, 7])
def test_our_client_splits_images_into_requests(
    server: Server, expected: Predictions, max_rows: int
) -> None:
    async def predict() -> Predictions:
        async with AsyncClient(server.url(""), model="stripes", max_rows=max_rows) as client:
            return await client.predict(IMAGES)

    with Client(server.url(""), model="stripes", max_rows=max_rows) as client:
        results = [client.predict(IMAGES), asyncio.run(predict())]
    for predictions in results:
        np.testing.assert_array_equal(predictions.probabilities, expected.probabilities)
        np.testing.assert_array_equal(predictions.prediction, expected.prediction)


def test_our_client_raises_the_message_of_the_server(server: Server) -> None:
    with (
        Client(server.url(""), model="other") as client,
        pytest.raises(ServerError, match="is not served here") as error,
    ):
        client.predict(IMAGES)
    assert error.value.status == 404


@pytest.fixture
def page(server: Server) -> Iterator[Page]:
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    with open_page(server.url("/"), classes=3) as page:
        yield page


def test_a_drawn_stroke_gets_a_prediction(page: Page, server: Server) -> None:
    box = page.locator("#pad").bounding_box()
    assert box
    x = box["x"] + box["width"] * 0.9
    page.mouse.move(x, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] - 5, steps=10)
    page.mouse.up()
    expect(page.locator("#answer")).to_contain_text("%")
    expect(page.locator(".bars .best")).to_have_count(1)
    expect(page.locator("#facts")).to_contain_text(server.model.version)
    lit = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
    lit += ".some((v, i) => i % 4 === 0 && v > 0)"
    assert page.locator("#seen").evaluate(lit)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#answer")).to_have_text("Nothing drawn yet")


def test_the_keyboard_draws_a_stroke(page: Page) -> None:
    page.locator("#pad").focus()
    page.keyboard.press("Space")
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    expect(page.locator("#answer")).to_contain_text("%")
    page.keyboard.press("Delete")
    expect(page.locator("#answer")).to_have_text("Nothing drawn yet")


def test_the_page_fits_a_phone_screen(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_promoting_under_load_swaps_without_an_error(server: Server) -> None:
    """Every answer is that of the version it names, and soon that of the one promoted last."""
    models = [server.model, publish(server.storage, scale=0.5)]
    expected = {
        model.version: Predictor(server.storage, model).predict(IMAGES).probabilities.ravel()
        for model in models
    }
    tensor = {"name": "image", "shape": IMAGES.shape, "datatype": "UINT8"}
    body = {"inputs": [tensor | {"data": IMAGES.ravel().tolist()}]}
    versions = list[str]()

    async def load(http: httpx.AsyncClient) -> None:
        while not swapped.is_set():
            reply = await http.post("/v2/models/stripes/infer", json=body)
            assert reply.status_code == 200, reply.text
            answer = reply.json()
            versions.append(answer["model_version"])
            probabilities = np.array(answer["outputs"][0]["data"], np.float32)
            np.testing.assert_array_equal(probabilities, expected[answer["model_version"]])

    async def swap() -> None:
        async with httpx.AsyncClient(base_url=server.url(""), timeout=30) as http:
            tasks = [asyncio.create_task(load(http)) for _ in range(16)]
            for number in range(SWAPS):
                promoted = models[number % 2]
                promote(server.storage, promoted.ref, "production")
                async with asyncio.timeout(20):
                    # Wait until the last 16 answers come from the promoted version.
                    while versions[-16:] != [promoted.version] * 16:
                        await asyncio.sleep(0.05)
            swapped.set()
            await asyncio.gather(*tasks)

    swapped = asyncio.Event()
    asyncio.run(swap())
