"""The limits and encodings of HTTP bodies."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from pipeline.models.predictor import Predictor
from serving.http.compression import negotiate
from serving.http.routes import build_routes
from serving.model.watcher import ModelWatcher
from tests.serving.http.helpers import Client, error_message, infer_body, png, settings
from tests.support.stripes_model import STRIPES, stripe

GZIPPED = gzip.compress(b"{}", mtime=0)


@pytest.mark.parametrize("path", ["/predict", "/v2/models/stripes/infer"])
def test_a_body_over_the_limit_is_refused_as_declared_and_as_streamed(
    client: Client, path: str
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 16)

    for content in (bytes((1 << 20) + 1), endless()):
        message = error_message(client.post(path, content=content), 413)
        assert "larger than 1 MiB" in message


def test_bodies_at_once_have_a_bound(watcher: ModelWatcher) -> None:
    """Hold most of the memory by a body that does not end; others wait until it is gone."""

    async def unfinished() -> AsyncIterator[bytes]:
        yield bytes(900_000)
        arrived.set()
        await release.wait()

    async def scenario() -> None:
        app = build_routes(watcher, settings("unused").model_copy(update={"max_bodies_mib": 1}))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            first = asyncio.ensure_future(client.post("/predict", content=unfinished()))
            await arrived.wait()
            refused = await client.post("/predict", content=bytes(200_000))
            assert "bodies of other requests" in error_message(refused, 503)
            assert (await client.post("/predict", content=png(stripe(0)))).status_code == 200
            release.set()
            await first
            later = await client.post("/predict", content=bytes(1 << 20))
            assert "neither a PNG nor a JPEG" in error_message(later, 415)

    arrived, release = asyncio.Event(), asyncio.Event()
    asyncio.run(scenario())


def test_a_body_that_does_not_arrive_in_time_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    monkeypatch.setattr("serving.http.bodies.BODY_TIMEOUT_S", 0.1)
    monkeypatch.setattr("serving.http.bodies.MIB_TIMEOUT_S", 0)
    response = client.post("/predict", content=slow())
    assert "did not arrive within" in error_message(response, 408)


def test_large_json_gets_the_answers_of_binary_tensors(
    client: Client, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the process for large JSON."""
    monkeypatch.setattr("serving.http.routes.QUICK_JSON_BYTES", 10)
    images = np.random.default_rng(0).integers(0, 256, (16, *STRIPES.shape), np.uint8)
    expected = predictor.predict(images).prediction.tolist()
    answer = client.post("/v2/models/stripes/infer", json=infer_body(images)).json()
    assert answer["outputs"][1]["data"] == expected
    v1 = client.post("/v1/models/stripes:predict", json={"instances": images.tolist()}).json()
    assert [row["prediction"] for row in v1["predictions"]] == expected
    invalid = client.post("/v2/models/stripes/infer", json={"inputs": ["x" * 100]})
    assert "Not an infer request" in error_message(invalid, 400)


@pytest.mark.parametrize("length", ["-1", "1e3", "abc", "99999999999999999999", "\u00b2", "3"])
def test_a_wrong_json_length_is_refused(client: Client, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    error_message(client.post("/v2/models/stripes/infer", content=b"{}", headers=headers), 400)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", "identity"),
        ("br", "identity"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate;q=0.1, gzip", "gzip"),
        ("deflate, gzip;q=0.5", "deflate"),
        ("identity;q=1, gzip;q=0.1", "identity"),
        ("gzip;q=0.000, deflate; Q=0.3", "deflate"),
        ("gzip;q=0", "identity"),
        ("*", "gzip"),
        ("*;q=0.5, gzip;q=0", "deflate"),
        ("gzip;q=high", "identity"),
        ("gzip;q=nan", "identity"),
    ],
)
def test_the_encoding_of_most_weight_is_chosen(accepted: str, encoding: str) -> None:
    assert negotiate(accepted) == encoding


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, deflate", "identity"), ("gzip, identity;q=0", "gzip"), ("gzip, *;q=0", "gzip")],
)
def test_binary_tensors_are_compressed_only_if_a_client_refuses_anything_else(
    client: Client, monkeypatch: pytest.MonkeyPatch, accepted: str, encoding: str
) -> None:
    monkeypatch.setattr("serving.http.compression.MIN_BYTES", 1)
    images = np.zeros((16, *STRIPES.shape), np.uint8)
    headers = {"Inference-Header-Content-Length": "0", "Accept-Encoding": accepted}
    url = "/v2/models/stripes/infer"
    responses = [
        client.post(url, content=images.tobytes(), headers=headers),
        client.post(url, json=infer_body(images), headers={"Accept-Encoding": "gzip"}),
    ]
    assert responses[0].headers.get("content-encoding", "identity") == encoding
    assert responses[1].headers["content-encoding"] == "gzip"
    assert {response.headers["vary"] for response in responses} == {"accept-encoding"}


@pytest.mark.parametrize("encoding", ["GZIP", "x-gzip", " gzip "])
def test_the_name_of_an_encoding_has_other_forms(client: Client, encoding: str) -> None:
    content = gzip.compress(json.dumps(infer_body(stripe(0)[None])).encode())
    headers = {"Content-Encoding": encoding}
    response = client.post("/v2/models/stripes/infer", content=content, headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_requests_and_responses_are_compressed(
    client: Client, predictor: Predictor, encoding: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, *STRIPES.shape), np.uint8)
    plain = json.dumps(infer_body(images)).encode()
    compressed = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
    headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding}
    response = client.post("/v2/models/stripes/infer", content=compressed, headers=headers)
    assert response.headers["content-encoding"] == encoding
    expected = predictor.predict(images).prediction.tolist()
    assert response.json()["outputs"][1]["data"] == expected


@pytest.mark.parametrize(
    ("encoding", "content", "status", "message"),
    [
        ("br", b"{}", 415, "Send gzip, deflate"),
        ("gzip", b"{}", 400, "not gzip"),
        ("deflate", GZIPPED, 400, "not deflate"),
        ("gzip", GZIPPED[:-1], 400, "one complete gzip stream"),
        ("gzip", GZIPPED * 2, 400, "one complete gzip stream"),
        ("gzip", gzip.compress(bytes(2 << 20), mtime=0), 413, "decompresses to more than 1 MiB"),
    ],
)
def test_a_body_that_cannot_be_decompressed_is_refused(
    client: Client, encoding: str, content: bytes, status: int, message: str
) -> None:
    headers = {"Content-Encoding": encoding}
    response = client.post("/v2/models/stripes/infer", content=content, headers=headers)
    assert message in error_message(response, status)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no file"),
        (b"--x\r\n", "Not a form|no file"),
        (b"--y--\r\n", "Not a form|no file"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n', "Not a form"),
    ],
)
def test_a_body_that_is_not_a_form_with_files_is_refused(
    client: Client, content: bytes, message: str
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.post("/predict", content=content, headers=headers)
    assert re.search(message, error_message(response, 400))


def test_a_form_has_a_maximum_number_of_files(client: Client) -> None:
    files = [("a", png(stripe(0)))] * 17
    assert "1 to 16 files" in error_message(client.post("/predict", files=files), 400)
