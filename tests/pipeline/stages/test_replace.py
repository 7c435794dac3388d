"""`--force` replaces a version: until the new one is complete, and if it dies, the old one stays.

Needs no Ray: the dataset and the run are written by hand.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.commit import commit, file_entry, find, load, read_file, write_file
from pipeline.artifacts.manifests import EvaluationManifest, ModelManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Evaluate, Export
from pipeline.errors import StorageError
from pipeline.models.predictor import Predictor
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from tests.support.local_artifacts import write_dataset, write_run
from tests.support.sample_data import make_images


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def model(storage: Storage) -> ModelManifest:
    run = write_run(storage, write_dataset(storage))
    return export(Export(root=storage.root, run=run.run))


def predictions(storage: Storage, ref: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    model = load(storage, f"models/{ref}", ModelManifest)
    return Predictor(storage, model).predict(make_images(5, seed=7)[0]).probabilities


def test_an_export_that_dies_leaves_the_version_as_it_was(
    storage: Storage, model: ModelManifest
) -> None:
    """The version holds another model: another exporter wrote it, which said nothing of it."""
    folder = f"models/{model.ref}"
    other = export(
        Export(root=storage.root, run=write_run(storage, write_dataset(storage), seed=1).run)
    )
    content = storage.read(f"models/{other.ref}/model.onnx")
    live = model.model_copy(update={"files": (write_file(storage, folder, "model.onnx", content),)})
    commit(storage, folder, live)
    expected = predictions(storage, model.ref)

    new_name = f"model-{model.onnx.sha256[:12]}.onnx"
    obstacle = Path(storage.root, folder, new_name)
    (obstacle / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError, match=new_name):
        export(Export(root=storage.root, run=model.run, force=True))
    np.testing.assert_array_equal(predictions(storage, model.ref), expected)

    shutil.rmtree(obstacle)
    forced = export(Export(root=storage.root, run=model.run, force=True))
    assert forced.onnx.path == new_name
    assert (predictions(storage, model.ref) != expected).all()
    assert not storage.exists(f"{folder}/model.onnx")


def test_an_evaluation_that_dies_leaves_the_report_as_it_was(
    storage: Storage, model: ModelManifest
) -> None:
    folder = f"models/{model.ref}"
    settings = Evaluate(root=storage.root, model=model.ref, force=True)
    expected = evaluate(settings)
    files = (write_file(storage, folder, name, b"old") for name in ("report.html", "model_card.md"))
    old = expected.model_copy(update={"files": tuple(files), "version": ""})
    commit(storage, folder, old)

    card = expected.files[1]
    obstacle = Path(storage.root, folder, f"model_card-{card.sha256[:12]}.md")
    (obstacle / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError, match="model_card-"):
        evaluate(settings)
    assert find(storage, folder, EvaluationManifest) == old
    assert [read_file(storage, folder, entry) for entry in old.files] == [b"old", b"old"]

    shutil.rmtree(obstacle)
    new = evaluate(Evaluate(root=storage.root, model=model.ref))
    assert [entry.sha256 for entry in new.files] == [entry.sha256 for entry in expected.files]
    for entry in new.files:
        assert file_entry(entry.path, read_file(storage, folder, entry)) == entry
    assert evaluate(Evaluate(root=storage.root, model=model.ref)) == new
