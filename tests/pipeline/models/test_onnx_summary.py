from __future__ import annotations

import onnx
import torch
from torch import Tensor, nn

from pipeline.models.classifier import Classifier
from pipeline.models.onnx_export import to_onnx
from pipeline.models.onnx_summary import LayerSummary, num_parameters, onnx_graph, onnx_layers
from tests.pipeline.models.test_cnn import run_of
from tests.support import stripes_model
from tests.support.local_artifacts import IMAGE


class Twice(nn.Module):
    """A network that uses its weights twice, and adds the input of a layer to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(IMAGE.num_pixels, IMAGE.num_pixels)
        self.last = nn.Linear(IMAGE.num_pixels, IMAGE.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1) / 255
        x = x + torch.relu(self.middle(x))
        x = x + torch.relu(self.middle(x))
        logits: Tensor = self.last(x)
        return logits


def test_the_operators_with_weights_are_listed_with_shapes() -> None:
    model = onnx.load_model_from_string(stripes_model.build())
    assert onnx_layers(model) == [LayerSummary("MatMul 24 x 3", (1, 24), (1, 3), 72)]


def test_the_graph_has_every_operator_from_the_input_to_both_outputs() -> None:
    graph = onnx_graph(onnx.load_model_from_string(stripes_model.build()))
    assert graph.splitlines() == [
        "flowchart TD",
        '    input(["image: uint8 [1, 4, 6]"])',
        '    n0["Flatten"]',
        "    input --> n0",
        '    n1["Cast"]',
        "    n0 --> n1",
        '    n2["Div"]',
        "    n1 --> n2",
        '    n3["MatMul"]',
        "    n2 --> n3",
        '    n4["Softmax"]',
        "    n3 --> n4",
        '    n5["ArgMax"]',
        "    n3 --> n5",
        '    n4 --> probabilities(["probabilities: float32 [1, 3]"])',
        '    n5 --> prediction(["prediction: int64 [1]"])',
    ]


def test_shared_weights_count_once_and_both_paths_are_drawn() -> None:
    network = Twice()
    model = onnx.load_model_from_string(to_onnx(Classifier(network).eval(), run_of(IMAGE)))
    counted = sum(parameter.numel() for parameter in network.parameters())
    assert num_parameters(onnx_layers(model)) == counted
    graph = onnx_graph(model).splitlines()
    for line in (line.strip() for line in graph if '["Add"]' in line):
        assert sum(arrow.endswith(f"--> {line.partition('[')[0]}") for arrow in graph) == 2
