from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from pipeline.artifacts.manifests import RunManifest
from pipeline.artifacts.storage import Storage
from pipeline.data.shards import LabeledImages
from pipeline.errors import ModelRejected
from pipeline.models import predictor
from pipeline.models.classifier import Classifier
from pipeline.models.mlp import Mlp
from pipeline.models.onnx_export import to_onnx
from pipeline.models.parity import UINT8_TOLERANCE, check_accuracy, check_parity
from pipeline.models.quantize import quantize
from tests.support.local_artifacts import IMAGE, write_dataset, write_run
from tests.support.sample_data import make_images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunManifest:
    storage = Storage(str(tmp_path_factory.mktemp("root")))
    return write_run(storage, write_dataset(storage))


def shards(*counts: int) -> list[LabeledImages]:
    """Return shards of this many rows."""
    return [
        LabeledImages(np.arange(count), *make_images(count, seed=seed))
        for seed, count in enumerate(counts)
    ]


def constant(*bias: float) -> Classifier:
    """Return a classifier without hidden layers and weights: these are the logits of any image."""
    mlp = Mlp(IMAGE, ())
    with torch.no_grad():
        mlp.layers[0].weight.zero_()  # type: ignore[operator]
        mlp.layers[0].bias.copy_(torch.tensor(bias))  # type: ignore[operator]
    return Classifier(mlp).eval()


def session(
    classifier: Classifier, run: RunManifest, *, uint8: bool = False
) -> ort.InferenceSession:
    model = to_onnx(classifier, run)
    return predictor.open_session(quantize(model) if uint8 else model)


def test_an_exported_model_predicts_what_torch_predicts(run: RunManifest) -> None:
    classifier = Classifier(Mlp(IMAGE, (16,))).eval()
    parity = check_parity(session(classifier, run), classifier, shards(700, 1, 400))
    assert parity.rows == 1101
    assert parity.changed == 0
    assert 0 < parity.max_difference <= 1e-5


def test_a_model_with_other_weights_is_not_published(run: RunManifest) -> None:
    classifier = Classifier(Mlp(IMAGE, (16,))).eval()
    exported = session(classifier, run)
    _, bias, *_ = classifier.parameters()
    with torch.no_grad():
        bias[0] += 0.01
    with pytest.raises(ModelRejected, match="The model was not published"):
        check_parity(exported, classifier, shards(50))
    with torch.no_grad():
        bias[0] = torch.nan
    with pytest.raises(ModelRejected, match="by nan"):
        check_parity(exported, classifier, shards(50, 50))


def test_a_difference_in_the_last_rows_of_the_last_shard_is_found(run: RunManifest) -> None:
    """Give a weight of a pixel that is 0 in all other rows another value."""
    classifier = Classifier(Mlp(IMAGE, ())).eval()
    exported = session(classifier, run)
    with torch.no_grad():
        next(classifier.parameters())[0, 0] += 1
    split = shards(700, 700)
    check_parity(exported, classifier, split)
    split[1].images[-1, 0, 0] = 255
    with pytest.raises(ModelRejected):
        check_parity(exported, classifier, split)


def test_a_changed_prediction_counts_only_if_it_is_no_near_tie(run: RunManifest) -> None:
    """Swap the best two classes by moving each probability by at most 1e-5."""
    exported = session(constant(0, 0.6e-5, -9), run)
    parity = check_parity(exported, constant(0.6e-5, 0, -9), shards(30))
    assert parity.changed == 30
    with pytest.raises(ModelRejected, match="changes 30 predictions of torch and a probability by"):
        check_parity(exported, constant(3e-5, 0, -9), shards(30))


def test_uint8_weights_may_change_few_predictions(run: RunManifest) -> None:
    classifier = Classifier(Mlp(IMAGE, (16,))).eval()
    parity = check_parity(
        session(classifier, run, uint8=True), classifier, shards(900), UINT8_TOLERANCE
    )
    assert 1e-5 < parity.max_difference < 0.1
    exported = session(constant(0, 0.01, -9), run)
    with pytest.raises(ModelRejected, match="changes 900 .*allowed: 1 and 1e-01"):
        check_parity(exported, constant(0.01, 0, -9), shards(900), UINT8_TOLERANCE)


def test_weights_that_uint8_spoils_are_not_published(run: RunManifest) -> None:
    """Make the weight of a pixel so large that all others are rounded to 0."""
    classifier = constant(0, 0, 0)
    weight = next(classifier.parameters())
    with torch.no_grad():
        for label in range(3):
            rows = torch.zeros(12, 10)
            rows[4 * label : 4 * label + 4] = 1
            weight[label] = rows.flatten()
        weight[:, 0] = 1e4
    split = shards(300, 300)
    with pytest.raises(ModelRejected, match="of 600 images of val.*Export without --uint8"):
        check_accuracy(session(classifier, run, uint8=True), classifier, split)
    check_accuracy(session(classifier, run), classifier, split)


def test_torch_is_asked_in_batches_that_memory_holds() -> None:
    images = np.zeros((10, 2**11, 2**10), np.uint8)
    assert [len(batch) for batch in predictor.batches(images)] == [2] * 5
    assert [len(batch) for batch in predictor.batches(images, 1)] == [1] * 10
    assert [len(batch) for batch in predictor.batches(images[:, :9, :9], 4)] == [4, 4, 2]
    assert not list(predictor.batches(images[:0]))
