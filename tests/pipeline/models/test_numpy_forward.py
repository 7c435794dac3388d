from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.storage import Storage
from pipeline.models import numpy_forward, predictor
from pipeline.models.classifier import Classifier
from pipeline.models.mlp import Mlp
from pipeline.models.onnx_export import to_onnx
from pipeline.models.quantize import quantize
from tests.support.local_artifacts import IMAGE, write_dataset, write_run
from tests.support.sample_data import make_images


@pytest.mark.parametrize("hidden_sizes", [(), (5,), (3, 3)], ids=str)
def test_a_layer_without_a_bias_is_exported_and_read(
    tmp_path: Path, hidden_sizes: tuple[int, ...]
) -> None:
    """Export first weights, whose biases are all 0: torch leaves those out of the graph."""
    storage = Storage(str(tmp_path))
    run = write_run(storage, write_dataset(storage))
    model = to_onnx(Classifier(Mlp(IMAGE, hidden_sizes)).eval(), run)
    images, _ = make_images(20, seed=3)
    for version in (model, quantize(model)):
        by_onnxruntime = predictor.run_session(predictor.open_session(version), images)
        by_numpy = numpy_forward.forward(version, images)
        np.testing.assert_allclose(by_numpy, by_onnxruntime.probabilities, atol=1e-5)
        for _, bias in numpy_forward.layers(version):
            assert not bias.any()
