"""Render an evaluation as report.html, a page that loads nothing else, and model_card.md."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from pipeline.arrays import UInt8Array
from pipeline.artifacts.manifests import DatasetManifest, ModelManifest
from pipeline.evaluation.metrics import Evaluation
from pipeline.models.summary import NetworkSummary
from pipeline.recipes import is_mlp

TEMPLATES = {"report.html": "report.html.j2", "model_card.md": "model_card.md.j2"}


def render(
    model: ModelManifest,
    network: NetworkSummary,
    dataset: DatasetManifest,
    epochs: Sequence[Mapping[str, float]],
    evaluations: Mapping[str, Evaluation],
) -> dict[str, str]:
    """Return the pages by file name; the same model version and metrics give the same text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.evaluation"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = png
    # Of the networks, only an Mlp has hidden sizes.
    ignored = set() if is_mlp(model.training) else {"hidden_sizes"}
    values = {
        "model": model,
        "dataset": dataset,
        "names": model.image.class_names,
        "evaluations": evaluations,
        "test": evaluations["test"].metrics,
        "network": network,
        "training": {k: v for k, v in model.training.items() if k not in ignored},
        "checked": describe_check(model),
        "learning_curves": learning_curves(epochs),
        "calibration": calibration(evaluations["test"].metrics),
    }
    return {
        name: environment.get_template(template).render(values)
        for name, template in TEMPLATES.items()
    }


def describe_check(model: ModelManifest) -> str:
    """Say how the weights are stored, and how far onnxruntime was found to differ from torch."""
    rounded = model.weights == "uint8"
    weights = "The first layer's weights are rounded to uint8" if rounded else "Weights are float32"
    rows = "all" if model.parity_rows is None else f"{model.parity_rows:,}"
    changed = "at most 0.2 % of predictions" if rounded else "no prediction"
    if model.parity_changed is not None:
        changed = f"{model.parity_changed:,} of {rows} predictions"
    return (
        f"{weights}. On {rows} images of test, onnxruntime and torch differ by at most "
        f"{model.parity_max_difference:.1e} in a probability, and in {changed}."
    )


def learning_curves(epochs: Sequence[Mapping[str, float]]) -> str:
    """Plot loss and accuracy by epoch, of `train` and `val`, as SVG."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    numbers = [line["epoch"] for line in epochs]
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(numbers, [line[measure] for line in epochs], label="train")
        axes.plot(numbers, [line[f"val_{measure}"] for line in epochs], label="val")
        axes.set_xlabel("epoch")
        axes.set_ylabel(measure)
        axes.grid(alpha=0.3)
        axes.legend()
    return _svg(figure)


def calibration(metrics: Mapping[str, Any]) -> str:
    """Plot accuracy against confidence by bin, as SVG; a calibrated model is on the diagonal."""
    bins = np.array(metrics["calibration_bins"])
    filled = bins[bins[:, 0] > 0]
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
    axes.scatter(
        filled[:, 1] / filled[:, 0],
        filled[:, 2] / filled[:, 0],
        s=15 + 200 * filled[:, 0] / filled[:, 0].max(),
        alpha=0.7,
    )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    return _svg(figure)


def png(image: UInt8Array) -> str:
    """Return an image, uint8 (height, width), as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "report", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
