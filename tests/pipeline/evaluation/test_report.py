from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.commit import load
from pipeline.artifacts.manifests import ModelManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Evaluate, Export
from pipeline.contract import ImageSpec
from pipeline.errors import ArtifactDamaged
from pipeline.evaluation import report
from pipeline.evaluation.metrics import Evaluation, Mistake
from pipeline.models.summary import summarize
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from tests.conftest import Artifacts
from tests.support.local_artifacts import write_dataset, write_run

EPOCHS = [{"epoch": 1, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}]


def test_class_names_and_caveats_are_escaped(artifacts: Artifacts) -> None:
    image = ImageSpec(12, 10, ("<script>", "b", "c"))
    model = artifacts.model.model_copy(update={"image": image, "caveat": "Only <a> sample."})
    mistake = Mistake(5, np.zeros((12, 10), np.uint8), label=0, prediction=1, confidence=0.9)
    evaluation = Evaluation(artifacts.evaluation.metrics["test"], [mistake])
    evaluations = {"val": evaluation, "test": evaluation}
    network = summarize(model, b"")
    pages = report.render(model, network, artifacts.dataset, EPOCHS, evaluations)
    assert "<script>" not in pages["report.html"]
    assert "is &lt;script&gt;<br>taken for b" in pages["report.html"]
    assert "Only &lt;a&gt; sample." in pages["report.html"]
    assert "Only <a> sample." in pages["model_card.md"]
    assert "data:image/png;base64," in pages["report.html"]


@pytest.mark.parametrize(
    ("uint8", "claims"),
    [
        (False, ("Weights are float32.", "in 0 of 100 predictions.", "1,987 (7,948 bytes)")),
        (True, ("layer's weights are rounded to uint8.", "of 100 pred", "1,987 (2,252 bytes)")),
    ],
)
def test_the_pages_say_how_weights_are_stored_and_what_was_checked(
    tmp_path: Path, uint8: bool, claims: tuple[str, ...]
) -> None:
    storage = Storage(str(tmp_path))
    run = write_run(storage, write_dataset(storage))
    model = export(Export(root=storage.root, run=run.run, uint8=uint8))
    evaluate(Evaluate(root=storage.root, model=model.ref))
    for name in ("report.html", "model_card.md"):
        page = html.unescape(storage.read(f"models/{model.ref}/{name}").decode())
        for claim in ("On 100 images of test, onnxruntime and torch differ by at most", *claims):
            assert claim in page


@pytest.mark.parametrize(
    ("difference", "claim"),
    [
        (1e-6, "Weights are float32. On all images of test, .* 1.0e-06 .* in no prediction"),
        (0.01, "weights are rounded to uint8. On all .* in at most 0.2 % of predictions"),
    ],
)
def test_a_version_of_an_older_manifest_is_described(
    tmp_path: Path, difference: float, claim: str
) -> None:
    """Read the fields of version 0.1.0, which said neither how weights are stored nor the rows."""
    old = {
        "format": 1,
        "caveat": "",
        "files": [
            {"path": "model.onnx", "bytes": 1, "sha256": "00" * 32, "rows": None},
            {"path": "config.pbtxt", "bytes": 1, "sha256": "00" * 32, "rows": None},
        ],
        "kind": "model",
        "name": "bars",
        "version": "0123456789ab",
        "run": "fast-0123456789ab",
        "dataset": "bars/0123456789ab",
        "image": {"height": 12, "width": 10, "class_names": ["a", "b"]},
        "inputs": [{"name": "image", "dtype": "uint8", "shape": [-1, 12, 10]}],
        "outputs": [{"name": "prediction", "dtype": "int64", "shape": [-1]}],
        "parity_max_difference": difference,
        "training": {"hidden_sizes": [16]},
    }
    storage = Storage(str(tmp_path))
    storage.write("m/manifest.json", json.dumps(old).encode())
    model = load(storage, "m", ModelManifest)
    assert model.onnx.path == "model.onnx"
    with pytest.raises(ArtifactDamaged, match="lists no ONNX file"):
        model.model_copy(update={"files": model.files[1:]}).onnx  # noqa: B018
    assert re.search(claim, report.describe_check(model))
