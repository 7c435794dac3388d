"""Export, evaluation and `show` of networks other than the Mlp, without Ray."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Evaluate, Export, Show
from pipeline.errors import ModelRejected, SettingError
from pipeline.models.predictor import Predictor
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from pipeline.stages.show import show
from pipeline.training.checkpoints import load_model
from tests.support.local_artifacts import write_dataset, write_run
from tests.support.own_network import CODE

PARAMETERS = 16 * 9 + 16 + 32 * 16 * 9 + 32 + 3 * 32 * 3 * 3 + 3
"""Parameters of a `cnn` for images of 12 x 10 pixels and 3 classes."""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def dataset(storage: Storage) -> DatasetManifest:
    return write_dataset(storage)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a module that Python can import: `build` makes a network."""
    file = tmp_path / f"{tmp_path.name}.py"
    file.write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    return file


def change(module: Path, code: str) -> None:
    """Give a module other code, as in the next command."""
    module.write_text(code)
    sys.modules.pop(module.stem, None)


def test_a_cnn_is_exported_evaluated_and_shown(
    storage: Storage, dataset: DatasetManifest, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(storage, dataset, model="cnn")
    model = export(Export(root=storage.root, run=run.run))
    assert model.parity_rows == 100
    assert model.parity_max_difference <= 1e-5
    assert export(Export(root=storage.root, run=run.run, force=True)).onnx == model.onnx

    evaluate(Evaluate(root=storage.root, model=model.ref))
    card = storage.read(f"models/{model.ref}/model_card.md").decode()
    assert "A convolutional network that tells 3 classes apart" in card
    assert f"**Parameters** {PARAMETERS:,} ({4 * PARAMETERS:,} bytes)" in card
    assert "model cnn" in card
    assert "hidden_sizes" not in card
    report = storage.read(f"models/{model.ref}/report.html").decode()
    assert "<th>Conv 32 x 16 x 3 x 3</th><td>1 × 16 × 6 × 5</td>" in report

    capsys.readouterr()
    show(Show(root=storage.root, model=model.ref))
    out = capsys.readouterr().out
    for text in ("Conv 16 x 1 x 3 x 3", "Gemm 3 x 288", '["MaxPool"]', "true label"):
        assert text in out
    assert f"Total parameters: {PARAMETERS:,}\n" in out
    assert "the forward pass in numpy is written for the network mlp only" in out


def test_uint8_of_a_cnn_is_refused_before_its_weights_are_read(
    storage: Storage, dataset: DatasetManifest
) -> None:
    run = write_run(storage, dataset, model="cnn")
    storage.delete(f"runs/{run.run}/{run.checkpoint}")
    with pytest.raises(SettingError, match="--uint8 rounds the network mlp only, .* cnn"):
        export(Export(root=storage.root, run=run.run, uint8=True))


def test_a_network_of_ones_own_is_exported_and_described(
    storage: Storage, dataset: DatasetManifest, own_module: Path
) -> None:
    name = f"{own_module.stem}:build"
    run = write_run(storage, dataset, model=name)
    model = export(Export(root=storage.root, run=run.run))
    evaluate(Evaluate(root=storage.root, model=model.ref))
    card = storage.read(f"models/{model.ref}/model_card.md").decode()
    assert f"The network {name} that tells 3 classes apart" in card
    predictor = Predictor(storage, model)
    assert predictor.predict(np.zeros((4, 12, 10), np.uint8)).probabilities.shape == (4, 3)


def test_other_code_of_an_own_network_gives_another_version_or_an_error(
    storage: Storage, dataset: DatasetManifest, own_module: Path
) -> None:
    run = write_run(storage, dataset, model=f"{own_module.stem}:build")
    settings = Export(root=storage.root, run=run.run)
    model = export(settings)
    change(own_module, CODE.replace("255", "256"))
    assert export(settings).version != model.version
    change(own_module, CODE.replace("dense", "other"))
    with pytest.raises(ModelRejected, match="do not fit the network .* Restore the code, or train"):
        export(settings)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("images.flatten(1)", "images.view(2, 120)", "static shape of 2"),
        ("return self.drop", "assert not images.any()\n        return self.drop", "data-dependent"),
    ],
    ids=["one batch size", "branch on a value"],
)
def test_a_network_that_onnx_cannot_express_is_refused_in_one_line(
    storage: Storage, dataset: DatasetManifest, own_module: Path, old: str, new: str, reason: str
) -> None:
    own_module.write_text(CODE.replace(old, new))
    run = write_run(storage, dataset, model=f"{own_module.stem}:build")
    with pytest.raises(ModelRejected, match=f"cannot be converted to ONNX: .*{reason}") as error:
        export(Export(root=storage.root, run=run.run))
    assert "\n" not in str(error.value)


def test_a_run_of_an_older_version_is_an_mlp(storage: Storage, dataset: DatasetManifest) -> None:
    run = write_run(storage, dataset)
    old = {"hidden_sizes": [16], "a_former_setting": 1}
    network = load_model(storage, run.model_copy(update={"training": old}))
    for name, values in load_model(storage, run).state_dict().items():
        assert torch.equal(values, network.state_dict()[name])
