from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Evaluate
from pipeline.data.shards import LabeledImages, iter_shards, read_split
from pipeline.evaluation.metrics import evaluate_predictor
from pipeline.models.predictor import Predictor
from pipeline.stages.evaluate import evaluate
from tests.conftest import Artifacts


def test_every_example_counts_once_in_every_measure(artifacts: Artifacts) -> None:
    predictor = Predictor(artifacts.storage, artifacts.model)
    split = read_split(artifacts.storage, artifacts.dataset, "test")
    found = evaluate_predictor(
        predictor, iter_shards(artifacts.storage, artifacts.dataset, "test")
    ).metrics
    predicted = predictor.predict(split.images)
    right = predicted.prediction == split.labels
    of_label = predicted.probabilities[np.arange(90), split.labels]
    assert found["count"] == 90
    assert found["accuracy"] == right.mean()
    assert found["loss"] == pytest.approx(-np.log(of_label).mean(), rel=1e-5)
    assert np.sum(found["confusion"]) == 90
    assert found["support"] == np.bincount(split.labels, minlength=3).tolist()


def test_measures_of_a_known_confusion_are_those_worked_out_by_hand(artifacts: Artifacts) -> None:
    """Of 4 rows with label 0, 3 are right and 1 is taken for a 2; of 2 with label 2, both right."""
    predictor = Predictor(artifacts.storage, artifacts.model)
    split = read_split(artifacts.storage, artifacts.dataset, "test")
    predicted = predictor.predict(split.images).prediction
    zeros, twos = np.flatnonzero(predicted == 0)[:3], np.flatnonzero(predicted == 2)[:3]
    rows = np.concatenate([zeros, twos])
    labels = np.array([0, 0, 0, 0, 2, 2], np.uint8)
    found = evaluate_predictor(
        predictor, [LabeledImages(split.ids[rows], split.images[rows], labels)]
    )
    assert found.metrics["confusion"] == [[3, 0, 1], [0, 0, 0], [0, 0, 2]]
    assert found.metrics["precision"] == pytest.approx([1, 0, 2 / 3])
    assert found.metrics["recall"] == pytest.approx([3 / 4, 0, 1])
    assert found.metrics["f1"] == pytest.approx([6 / 7, 0, 4 / 5])
    [mistake] = found.mistakes
    assert (mistake.id, mistake.label, mistake.prediction) == (int(split.ids[twos[0]]), 0, 2)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy(
    artifacts: Artifacts,
) -> None:
    predictor = Predictor(artifacts.storage, artifacts.model)
    image = read_split(artifacts.storage, artifacts.dataset, "test").images[:1]
    same = np.repeat(image, 4, axis=0)
    found = predictor.predict(image)
    label, confidence = int(found.prediction[0]), float(found.probabilities.max())
    labels = np.array([label, label, label, (label + 1) % 3], np.uint8)
    metrics = evaluate_predictor(predictor, [LabeledImages(np.arange(4), same, labels)]).metrics
    assert metrics["calibration_error"] == pytest.approx(abs(confidence - 3 / 4), abs=1e-6)


def test_the_report_is_one_page_that_needs_nothing_else(artifacts: Artifacts) -> None:
    folder = Path(artifacts.root, "models", artifacts.model.ref)
    page = (folder / "report.html").read_text()
    assert f"{artifacts.evaluation.metrics['test']['accuracy']:.4f}" in page
    assert page.count("<svg") == 2
    assert 'src="http' not in page
    assert 'href="http' not in page.replace('xlink:href="http', "")
    card = (folder / "model_card.md").read_text()
    assert card.startswith(f"# {artifacts.model.ref}")
    assert "| test | 90 |" in card


def test_evaluating_again_gives_the_same_bytes(artifacts: Artifacts) -> None:
    again = evaluate(Evaluate(root=artifacts.root, model=artifacts.model.ref, force=True))
    assert again == artifacts.evaluation
    path = Path(artifacts.root, "models", artifacts.model.ref, "evaluation.json")
    assert json.loads(path.read_text())["model"] == artifacts.model.ref
