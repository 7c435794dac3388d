from __future__ import annotations

import math

import torch

from pipeline.contract import ImageSpec
from pipeline.models.mlp import Mlp
from pipeline.models.mlp_summary import layer_table, mermaid_graph, num_bytes
from pipeline.models.onnx_summary import num_parameters

MNIST = ImageSpec(28, 28, tuple("0123456789"))


def test_the_table_is_that_of_the_tutorial() -> None:
    rows = layer_table(MNIST, (128,))
    assert num_parameters(rows) == 101_770
    assert num_bytes(rows, "float32") == 407_080
    # The 128 units have a step each, as float32, and weights of one byte.
    assert num_bytes(rows, "uint8") == 407_080 - 3 * 784 * 128 + 4 * 128
    assert [row.layer for row in rows] == [
        "scale, flatten",
        "dense_0",
        "relu_0",
        "dense_1",
        "softmax_1",
    ]
    assert rows[1].input_shape == (1, 784)
    assert rows[-1].output_shape == (1, 10)


def test_the_table_counts_the_parameters_of_the_network() -> None:
    for sizes in ((), (5,), (7, 3, 9)):
        model = Mlp(ImageSpec(4, 6, ("a", "b", "c")), sizes)
        counted = sum(p.numel() for p in model.parameters())
        assert num_parameters(layer_table(ImageSpec(4, 6, ("a", "b", "c")), sizes)) == counted


def test_the_graph_goes_from_the_input_to_both_outputs() -> None:
    lines = mermaid_graph(layer_table(MNIST, (128,))).splitlines()
    assert lines[0] == "flowchart TD"
    assert "image: uint8 [1, 28, 28]" in lines[1]
    assert "probabilities: float32 [1, 10]" in lines[-2]
    assert "prediction: int64 [1]" in lines[-1]


def test_first_weights_are_glorot_uniform_and_biases_zero() -> None:
    weight, bias, *_ = Mlp(MNIST, (128,), seed=0).parameters()
    limit = math.sqrt(6 / (784 + 128))
    assert weight.abs().max() <= limit
    assert abs(weight.std().item() - limit / math.sqrt(3)) < 0.01 * limit
    assert not bias.any()


def test_the_seed_alone_decides_the_first_weights() -> None:
    torch.manual_seed(1)
    one = Mlp(MNIST, (8,), seed=3)
    torch.manual_seed(2)
    two, other = Mlp(MNIST, (8,), seed=3), Mlp(MNIST, (8,), seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)  # type: ignore[arg-type]
