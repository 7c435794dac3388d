"""Ask a server for one prediction over HTTP: `run` starts the server and stops it afterwards.

The server is a process of its own, as a user would start it, because `pipeline` never imports
`serving`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import requests
from PIL import Image

from pipeline.artifacts.manifests import DatasetManifest, ModelManifest
from pipeline.artifacts.storage import Storage
from pipeline.data import shards
from pipeline.errors import ResourcesMissing

START_TIMEOUT_S = 120

REQUEST_TIMEOUT_S = 30

STOP_TIMEOUT_S = 10
"""Time for the server to end after SIGTERM; after that it is killed, and its processes with it."""


@dataclass(frozen=True)
class Answer:
    """The true class of an image, and the class that the server predicted."""

    label: str
    prediction: str


def ask_server(storage: Storage, model: ModelManifest, dataset: DatasetManifest) -> Answer:
    """Serve the model version on a free port, and post the first image of `test` as PNG.

    Raise ResourcesMissing if the server does not start or does not answer.
    """
    first = next(shards.iter_shards(storage, dataset, "test"))
    png = BytesIO()
    Image.fromarray(first.images[0]).save(png, "PNG")
    command = [sys.executable, "-m", "serving", "--port", "0"]
    command += ["--root", storage.uri(), "--model", model.ref]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, text=True, env=environment) as server:
        watchdog = threading.Timer(START_TIMEOUT_S, server.kill)
        watchdog.start()
        try:
            assert server.stdout
            line = server.stdout.readline()
            watchdog.cancel()
            if not line:
                raise ResourcesMissing(
                    f"The server was not ready within {START_TIMEOUT_S} s, or exited before that; "
                    "its output above says why."
                )
            reply = _post(f"{line.split()[-1]}/predict", png.getvalue())
        finally:
            watchdog.cancel()
            _stop(server)
    return Answer(dataset.image.class_names[int(first.labels[0])], reply["class_name"])


def _stop(server: subprocess.Popen[str]) -> None:
    """End the server, in order if it does so in time."""
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()


def _post(url: str, png: bytes) -> Any:
    try:
        with requests.Session() as session:
            # A proxy that the environment names may not reach this machine's loopback.
            session.trust_env = False
            reply = session.post(url, data=png, timeout=REQUEST_TIMEOUT_S)
        reply.raise_for_status()
    except requests.RequestException as error:
        raise ResourcesMissing(f"The server did not answer a PNG file: {error}.") from None
    return reply.json()
