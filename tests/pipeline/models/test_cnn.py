from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artifacts.manifests import RunManifest
from pipeline.contract import ImageSpec
from pipeline.data.shards import LabeledImages
from pipeline.models import predictor
from pipeline.models.classifier import Classifier
from pipeline.models.cnn import Cnn
from pipeline.models.factory import create_model
from pipeline.models.onnx_export import to_onnx
from pipeline.models.parity import check_contract, check_parity
from pipeline.recipes import Training
from tests.support.local_artifacts import IMAGE
from tests.support.sample_data import make_images

SIZES = [(1, 1, 2), (5, 7, 3), (28, 28, 10), (64, 64, 256)]


def run_of(image: ImageSpec) -> RunManifest:
    return RunManifest(
        run="by-hand",
        dataset=f"a/{'0' * 12}",
        image=image,
        training={},
        device="cpu",
        metrics=(),
        checkpoint="checkpoint.pt",
    )


@pytest.mark.parametrize(("height", "width", "classes"), SIZES)
def test_images_of_any_size_are_classified_alike_by_torch_and_onnxruntime(
    height: int, width: int, classes: int
) -> None:
    image = ImageSpec(height, width, tuple(map(str, range(classes))))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (70, height, width), np.uint8)
    split = [LabeledImages(np.arange(70), images, np.zeros(70, np.uint8))]
    classifier = Classifier(create_model(image, Training(model="cnn", seed=classes))).eval()
    session = predictor.open_session(to_onnx(classifier, run_of(image)))
    check_contract(session, *predictor.expected_tensors(image))
    assert check_parity(session, classifier, split).changed == 0


def test_a_trained_network_is_exact_and_passes_the_parity_gate() -> None:
    """Train until the probabilities are near 0 and 1."""
    torch.manual_seed(0)
    network = Cnn(IMAGE)
    images, labels = make_images(200, seed=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(40):
        logits = network(torch.from_numpy(images))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(1).numpy() == labels).mean() > 0.98
    classifier = Classifier(network).eval()
    session = predictor.open_session(to_onnx(classifier, run_of(IMAGE)))
    other = LabeledImages(np.arange(500), *make_images(500, seed=2))
    assert check_parity(session, classifier, [other]).max_difference <= 1e-5


def test_the_same_weights_give_the_same_file_without_local_paths() -> None:
    first, second = (
        to_onnx(Classifier(create_model(IMAGE, Training(model="cnn"))).eval(), run_of(IMAGE))
        for _ in range(2)
    )
    assert first == second
    assert str(Path.cwd()).encode() not in first


def test_the_network_is_small() -> None:
    network = Cnn(ImageSpec(28, 28, tuple("0123456789")))
    assert sum(parameter.numel() for parameter in network.parameters()) == 20_490
