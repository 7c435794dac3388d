"""Tests on all 70,000 images of MNIST: set MNIST_DIR to a folder of its four files."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.artifacts.manifests import DatasetManifest, EvaluationManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Data, Evaluate, Export, Preprocess, Train
from pipeline.data.catalog import PROFILES
from pipeline.data.shards import read_split
from pipeline.recipes import RECIPES
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train


@pytest.fixture(scope="module")
def dataset(
    mnist_dir: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, DatasetManifest]:
    root = str(tmp_path_factory.mktemp("mnist"))
    return root, preprocess(Preprocess(root=root, data=Data(source=mnist_dir)))


def run_recipe(root: str, dataset: DatasetManifest, recipe: str) -> EvaluationManifest:
    trained = train(Train(root=root, dataset=dataset.ref, train=RECIPES[recipe]))
    model = export(Export(root=root, run=trained.run))
    assert model.parity_max_difference <= 1e-5
    return evaluate(Evaluate(root=root, model=model.ref))


def test_the_dataset_holds_all_of_mnist(dataset: tuple[str, DatasetManifest]) -> None:
    root, manifest = dataset
    assert manifest.rows == {"train": 50_000, "val": 10_000, "test": 10_000}
    assert manifest.source == PROFILES["mnist"].sha256
    splits = [read_split(Storage(root), manifest, split) for split in manifest.rows]
    counts = sum(np.bincount(split.labels, minlength=10) for split in splits)
    np.testing.assert_array_equal(
        counts, [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
    )
    assert splits[0].labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.unique(np.concatenate([split.ids for split in splits])).size == 70_000


def test_the_fast_recipe_reaches_0_975_on_test(dataset: tuple[str, DatasetManifest]) -> None:
    evaluation = run_recipe(*dataset, "fast")
    assert evaluation.metrics["test"]["count"] == 10_000
    assert evaluation.metrics["test"]["accuracy"] >= 0.975
    assert evaluation.metrics["val"]["accuracy"] >= 0.9755


@pytest.mark.slow
def test_the_tutorial_recipe_reaches_the_tutorial_accuracy(
    dataset: tuple[str, DatasetManifest],
) -> None:
    evaluation = run_recipe(*dataset, "tutorial")
    assert evaluation.metrics["val"]["accuracy"] == pytest.approx(0.9755, abs=0.003)
