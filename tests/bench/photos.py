"""Benchmark of /predict on photos of handwritten digits. Takes a minute.

    MNIST_DIR=... make bench-photos ROOT=artifacts   # MNIST_DIR: a folder of MNIST's files

ROOT holds a model mnist/production, as `python -m pipeline run` leaves it. The photos are drawn by
`tests.support.photos` from test digits chosen by SEED; PHOTOS is their number. Each is prepared and
predicted as /predict does. Prints a table, and one line of JSON last.
"""

from __future__ import annotations

import json
import os
import sys
import time
from statistics import median
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.artifacts.registry import find_model
from pipeline.artifacts.storage import Storage
from pipeline.config import Data
from pipeline.data.sources import open_source
from pipeline.models.predictor import Predictor
from serving.errors import ImageInvalid
from serving.protocol.image_input import read_image
from tests.support.photos import photographs

PHOTOS = int(os.environ.get("PHOTOS", "1000"))
SEED = int(os.environ.get("SEED", "2"))
CONFIDENT = 0.9


class Answer(NamedTuple):
    """The answer for one photo: whether it is right, its confidence and the seconds it took."""

    right: bool
    confidence: float
    seconds: float


def answers(root: str, folder: str) -> list[Answer | None]:
    """Return the answer for each photo, None where it was refused."""
    storage = Storage(root)
    predictor = Predictor(storage, find_model(storage, "mnist/production"))
    test = open_source(Data(source=folder)).splits["test"]
    rows = np.random.default_rng(SEED).permutation(test.num_rows)[:PHOTOS]
    batch = test.read(0, test.num_rows).take(rows)
    assert batch.labels is not None
    results = list[Answer | None]()
    photos = photographs(batch.images, batch.labels, SEED)
    for label, photo in zip(batch.labels, photos, strict=True):
        started = time.perf_counter()
        try:
            pixels = read_image(photo, predictor.model.image).pixels
        except ImageInvalid:
            results.append(None)
            continue
        seconds = time.perf_counter() - started
        predictions = predictor.predict(pixels[None])
        right = int(predictions.prediction[0]) == int(label)
        results.append(Answer(right, float(predictions.probabilities.max()), seconds))
    return results


def main(root: str) -> None:
    results = answers(root, os.environ["MNIST_DIR"])
    answered = [answer for answer in results if answer]
    wrong = [answer for answer in answered if not answer.right]
    confident = [answer for answer in wrong if answer.confidence > CONFIDENT]
    figures = {
        "photos": len(results),
        "refused": round(1 - len(answered) / len(results), 4),
        "right of those answered": round(1 - len(wrong) / len(answered), 4),
        f"wrong with a confidence over {CONFIDENT}": round(len(confident) / len(answered), 4),
        "median ms to pixels": round(1000 * median(answer.seconds for answer in answered), 1),
        "longest ms to pixels": round(1000 * max(answer.seconds for answer in answered), 1),
    }
    table = Table("measure", "value")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
