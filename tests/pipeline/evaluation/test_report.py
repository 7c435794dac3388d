from __future__ import annotations

import numpy as np
import pytest

from pipeline.contract import ImageSpec
from pipeline.evaluation import report
from pipeline.evaluation.metrics import Evaluation, Mistake
from tests.conftest import Artifacts

EPOCHS = [{"epoch": 1, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}]


def test_class_names_and_caveats_are_escaped(artifacts: Artifacts) -> None:
    image = ImageSpec(12, 10, ("<script>", "b", "c"))
    model = artifacts.model.model_copy(update={"image": image, "caveat": "Only <a> sample."})
    mistake = Mistake(5, np.zeros((12, 10), np.uint8), label=0, prediction=1, confidence=0.9)
    evaluation = Evaluation(artifacts.evaluation.metrics["test"], [mistake])
    pages = report.render(model, artifacts.dataset, EPOCHS, {"val": evaluation, "test": evaluation})
    assert "<script>" not in pages["report.html"]
    assert "is &lt;script&gt;<br>taken for b" in pages["report.html"]
    assert "Only &lt;a&gt; sample." in pages["report.html"]
    assert "Only <a> sample." in pages["model_card.md"]
    assert "data:image/png;base64," in pages["report.html"]


@pytest.mark.parametrize(
    ("difference", "claim"), [(1e-6, "in no prediction"), (0.01, "in at most 0.2 % of predictions")]
)
def test_the_pages_claim_what_the_parity_check_allows(
    artifacts: Artifacts, difference: float, claim: str
) -> None:
    model = artifacts.model.model_copy(update={"parity_max_difference": difference})
    evaluation = Evaluation(artifacts.evaluation.metrics["test"], [])
    pages = report.render(model, artifacts.dataset, EPOCHS, {"test": evaluation})
    assert all(claim in page for page in pages.values())
