"""The layers, the graph and the size of a model version's network; needs no torch."""

from __future__ import annotations

from typing import NamedTuple

import onnx

from pipeline.artifacts.manifests import ModelManifest
from pipeline.models.mlp_summary import BYTES_PER_PARAMETER, layer_table, mermaid_graph, num_bytes
from pipeline.models.onnx_summary import LayerSummary, num_parameters, onnx_graph, onnx_layers
from pipeline.recipes import is_mlp

TITLES = {"mlp": "A fully connected network", "cnn": "A convolutional network"}


class NetworkSummary(NamedTuple):
    """The network of a model version."""

    title: str
    """Its kind, to begin a sentence with."""
    layers: list[LayerSummary]
    """All layers of an Mlp; of another network, the operators with weights."""
    graph: str
    """The same network in Mermaid."""
    parameters: int
    bytes: int
    """Size of all parameters."""


def summarize(model: ModelManifest, onnx_model: bytes) -> NetworkSummary:
    """Return the summary of an Mlp from its settings, and of another network from its ONNX file."""
    if is_mlp(model.training):
        layers = layer_table(model.image, model.training["hidden_sizes"])
        graph, size = mermaid_graph(layers), num_bytes(layers, model.weights)
        return NetworkSummary(TITLES["mlp"], layers, graph, num_parameters(layers), size)
    proto = onnx.load_model_from_string(onnx_model)
    layers = onnx_layers(proto)
    parameters = num_parameters(layers)
    name = model.training.get("model", "")
    title = TITLES.get(name, f"The network {name}".rstrip())
    graph = onnx_graph(proto)
    return NetworkSummary(title, layers, graph, parameters, BYTES_PER_PARAMETER * parameters)
