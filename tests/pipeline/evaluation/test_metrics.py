from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.storage import Storage
from pipeline.config import Evaluate, Export
from pipeline.data.shards import LabeledImages, iter_shards, read_split
from pipeline.evaluation.metrics import NUM_MISTAKES, evaluate_predictor
from pipeline.models.predictor import Predictor
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from tests.conftest import Artifacts
from tests.support.local_artifacts import write_dataset, write_run


def test_every_example_counts_once_in_every_measure(artifacts: Artifacts) -> None:
    predictor = Predictor(artifacts.storage, artifacts.model)
    split = read_split(artifacts.storage, artifacts.dataset, "test")
    metrics = evaluate_predictor(
        predictor, iter_shards(artifacts.storage, artifacts.dataset, "test")
    ).metrics
    predicted = predictor.predict(split.images)
    correct = predicted.prediction == split.labels
    true_class = predicted.probabilities[np.arange(90), split.labels]
    assert metrics["count"] == 90
    assert metrics["accuracy"] == correct.mean()
    assert metrics["loss"] == pytest.approx(-np.log(true_class).mean(), rel=1e-5)
    assert np.sum(metrics["confusion"]) == 90
    assert metrics["support"] == np.bincount(split.labels, minlength=3).tolist()


def test_metrics_of_a_known_confusion_are_those_computed_by_hand(artifacts: Artifacts) -> None:
    """Predict three of four rows of class 0 correctly, one as 2, and both rows of class 2."""
    predictor = Predictor(artifacts.storage, artifacts.model)
    split = read_split(artifacts.storage, artifacts.dataset, "test")
    predicted = predictor.predict(split.images).prediction
    zeros, twos = np.flatnonzero(predicted == 0)[:3], np.flatnonzero(predicted == 2)[:3]
    rows = np.concatenate([zeros, twos])
    labels = np.array([0, 0, 0, 0, 2, 2], np.uint8)
    evaluation = evaluate_predictor(
        predictor, [LabeledImages(split.ids[rows], split.images[rows], labels)]
    )
    assert evaluation.metrics["confusion"] == [[3, 0, 1], [0, 0, 0], [0, 0, 2]]
    assert evaluation.metrics["precision"] == pytest.approx([1, 0, 2 / 3])
    assert evaluation.metrics["recall"] == pytest.approx([3 / 4, 0, 1])
    assert evaluation.metrics["f1"] == pytest.approx([6 / 7, 0, 4 / 5])
    [mistake] = evaluation.mistakes
    assert (mistake.id, mistake.label, mistake.prediction) == (int(split.ids[twos[0]]), 0, 2)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy(
    artifacts: Artifacts,
) -> None:
    predictor = Predictor(artifacts.storage, artifacts.model)
    image = read_split(artifacts.storage, artifacts.dataset, "test").images[:1]
    same = np.repeat(image, 4, axis=0)
    predicted = predictor.predict(image)
    label, confidence = int(predicted.prediction[0]), float(predicted.probabilities.max())
    labels = np.array([label, label, label, (label + 1) % 3], np.uint8)
    metrics = evaluate_predictor(predictor, [LabeledImages(np.arange(4), same, labels)]).metrics
    assert metrics["calibration_error"] == pytest.approx(abs(confidence - 3 / 4), abs=1e-6)


def test_mistakes_are_the_most_confident_and_keep_no_shard_in_memory(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    dataset = write_dataset(storage, test=400, rows_per_shard=50)
    model = export(Export(root=storage.root, run=write_run(storage, dataset).run))
    predictor = Predictor(storage, model)
    shards = list(iter_shards(storage, dataset, "test"))
    mistakes = evaluate_predictor(predictor, shards).mistakes
    split = read_split(storage, dataset, "test")
    predicted = predictor.predict(split.images)
    confidence = predicted.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted.prediction != split.labels)
    expected = sorted(wrong, key=lambda i: (-confidence[i], i))[:NUM_MISTAKES]
    assert [mistake.id for mistake in mistakes] == expected
    for mistake in mistakes:
        np.testing.assert_array_equal(mistake.image, split.images[mistake.id])
        assert mistake.image.base is None


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
    second = evaluate(Evaluate(root=artifacts.root, model=artifacts.model.ref, force=True))
    assert second == artifacts.evaluation
    path = Path(artifacts.root, "models", artifacts.model.ref, "evaluation.json")
    assert json.loads(path.read_text())["model"] == artifacts.model.ref
