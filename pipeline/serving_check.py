"""One prediction over HTTP, from a server that is started for it and stopped after it.

The server is a process of its own, as a user would start it: the batch side imports none of it.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO

import requests
from PIL import Image

from pipeline import shards
from pipeline.contract import ResourcesMissing
from pipeline.manifest import DatasetManifest, ModelManifest
from pipeline.storage import Storage

STOP_TIMEOUT_S = 30
REQUEST_TIMEOUT_S = 30


@dataclass(frozen=True)
class Answer:
    """The true class of an image, and the class that the server said."""

    label: str
    prediction: str


def ask_server(storage: Storage, model: ModelManifest, dataset: DatasetManifest) -> Answer:
    """Serves the model version on a free port and posts the first image of `test` as PNG."""
    first = next(shards.read_shards(storage, dataset, "test"))
    picture = BytesIO()
    Image.fromarray(first.images[0]).save(picture, "PNG")
    command = [sys.executable, "-m", "serving", "--port", "0"]
    command += ["--root", storage.uri(), "--model", model.ref]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        line = server.stdout.readline()
        if not line:
            raise ResourcesMissing(
                f"The server ended with code {server.wait()} before it was ready; "
                "its reason stands above."
            )
        reply = requests.post(
            f"{line.split()[-1]}/predict",
            data=picture.getvalue(),
            headers={"Content-Type": "image/png"},
            timeout=REQUEST_TIMEOUT_S,
        )
        reply.raise_for_status()
    finally:
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
    return Answer(dataset.image.class_names[int(first.labels[0])], reply.json()["class_name"])
