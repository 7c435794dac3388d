"""One prediction over HTTP, from a server that is started for it and stopped after it.

The server is a process of its own, as a user would start it: the batch side imports none of it.
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


@dataclass(frozen=True)
class Answer:
    """The true class of an image, and the class that the server said."""

    label: str
    prediction: str


def ask_server(storage: Storage, model: ModelManifest, dataset: DatasetManifest) -> Answer:
    """Serves the model version on a free port and posts the first image of `test` as PNG."""
    first = next(shards.iter_shards(storage, dataset, "test"))
    picture = BytesIO()
    Image.fromarray(first.images[0]).save(picture, "PNG")
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
                    f"The server was not ready within {START_TIMEOUT_S} s, or ended before; "
                    "its reason stands above."
                )
            reply = _post(f"{line.split()[-1]}/predict", picture.getvalue())
        finally:
            watchdog.cancel()
            server.terminate()
    return Answer(dataset.image.class_names[int(first.labels[0])], reply["class_name"])


def _post(url: str, picture: bytes) -> Any:
    try:
        reply = requests.post(url, data=picture, timeout=REQUEST_TIMEOUT_S)
        reply.raise_for_status()
    except requests.RequestException as error:
        raise ResourcesMissing(f"The server did not answer a picture: {error}.") from None
    return reply.json()
