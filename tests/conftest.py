"""One Ray for the whole session, and the artifacts of one small run that tests may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from pipeline.artifacts.manifests import (
    DatasetManifest,
    EvaluationManifest,
    ModelManifest,
    RunManifest,
)
from pipeline.artifacts.storage import Storage
from pipeline.cluster import connection
from pipeline.config import Data, Evaluate, Export, Preprocess, Train
from pipeline.recipes import Training
from pipeline.stages.evaluate import evaluate
from pipeline.stages.export import export
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train
from tests.support.sample_data import write_source

# No test asserts a time, and other tests may take the cores.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

TRAINING = Training(
    hidden_sizes=(16,),
    epochs=4,
    # The last batch is smaller, and the shares of two workers differ.
    batch_size=47,
    learning_rate=0.01,
    checkpoint_steps=1,
    device="cpu",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need Ray, a server or a browser; `make test-fast` leaves them out."""
    for item in items:
        assert isinstance(item, pytest.Function)
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if "ray_session" in item.fixturenames or folder in ("e2e", "faults"):
            item.add_marker("ray")


@dataclass(frozen=True)
class Artifacts:
    """A small run from end to end, made once; read only."""

    root: str
    storage: Storage
    data: Data
    dataset: DatasetManifest
    run: RunManifest
    model: ModelManifest
    evaluation: EvaluationManifest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # A node tells its metrics each second, and not every ten.
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        with connection.connected():
            yield


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def artifacts(
    ray_session: None, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Artifacts:
    root = str(tmp_path_factory.mktemp("artifacts"))
    data = Data(name="bars", source=str(source), rows_per_shard=200)
    dataset = preprocess(Preprocess(root=root, data=data))
    run = train(Train(root=root, dataset=dataset.ref, train=TRAINING))
    model = export(Export(root=root, run=run.run))
    evaluation = evaluate(Evaluate(root=root, model=model.ref))
    return Artifacts(root, Storage(root), data, dataset, run, model, evaluation)


@pytest.fixture(scope="session")
def mnist_dir() -> str:
    folder = os.environ.get("MNIST_DIR")
    if not folder:
        pytest.skip("MNIST_DIR is not set: give the folder of the four MNIST files")
    return folder
