"""The command `show`: a model version's layers as a table and a graph, and one prediction.

python -m pipeline show --model mnist/production --index 7
"""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.arrays import UInt8Array
from pipeline.artifacts import registry
from pipeline.artifacts.commit import load, read_file
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Show
from pipeline.data import shards
from pipeline.errors import SettingError
from pipeline.models import numpy_forward
from pipeline.models.predictor import Predictor
from pipeline.models.summary import NetworkSummary, summarize
from pipeline.recipes import is_mlp

SHADES = " ░▒▓█"

BAR_WIDTH = 30


def show(settings: Show) -> None:
    """Print the table of layers, the graph as Mermaid, and one image of `test` with its prediction.

    Raise SettingError if `test` has no image of this index.
    """
    storage = Storage(settings.root)
    model = registry.find_model(storage, settings.model)
    dataset = load(storage, f"datasets/{model.dataset}", DatasetManifest)
    if settings.index >= dataset.rows["test"]:
        raise SettingError(
            f"--index is {settings.index}, but `test` has {dataset.rows['test']} images."
        )
    (row,) = shards.iter_rows(storage, dataset, "test", np.array([settings.index]))
    image, label = row.images[0], int(row.labels[0])
    if settings.save:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        folder, _, file = os.path.abspath(settings.save).rpartition("/")
        Storage(folder).write(file, buffer.getvalue())
    out = Console(highlight=False)
    onnx_model = read_file(storage, registry.model_folder(model.name, model.version), model.onnx)
    network = summarize(model, onnx_model)
    out.print(model_table(model.ref, network))
    out.print(f"Total parameters: {network.parameters:,}")
    out.print(f"Total parameters memory: {network.bytes:,} bytes\n")
    print(network.graph)
    print(f"\n{draw(image)}\n")
    probabilities = Predictor(storage, model).predict(image[None]).probabilities[0]
    names = model.image.class_names
    for name, probability in zip(names, probabilities, strict=True):
        print(f"{name:>10} {probability:.4f} {'█' * round(float(probability) * BAR_WIDTH)}")
    print(f"\ntrue label {names[label]}, prediction {names[int(probabilities.argmax())]}")
    if is_mlp(model.training):
        difference = abs(numpy_forward.forward(onnx_model, image[None])[0] - probabilities).max()
        print(f"the same in numpy differs from onnxruntime by at most {difference:.1e}")
    else:
        print("the forward pass in numpy is written for the network mlp only")
    if model.caveat:
        print(model.caveat)


def model_table(title: str, network: NetworkSummary) -> Table:
    """Return the layers of a network, with shapes and parameters, for rich to print."""
    result = Table(title=title)
    for column in ("layer", "input shape", "output shape", "parameters"):
        result.add_column(column, justify="left" if column == "layer" else "right")
    for row in network.layers:
        result.add_row(
            row.layer, str(row.input_shape), str(row.output_shape), f"{row.parameters:,}"
        )
    return result


def draw(image: UInt8Array) -> str:
    """Draw an image, uint8 (height, width), in block characters, two per pixel."""
    steps = image.astype(int) * (len(SHADES) - 1) // 255
    return "\n".join("".join(SHADES[step] * 2 for step in row).rstrip() for row in steps)
