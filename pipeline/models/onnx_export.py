"""Convert a classifier to one self-contained ONNX file that takes raw pixels."""

from __future__ import annotations

import json
import logging
import warnings

import onnx
import torch

from pipeline.artifacts.manifests import RunManifest
from pipeline.contract import INPUT, PREDICTION, PROBABILITIES, ImageSpec
from pipeline.errors import ModelRejected
from pipeline.models.classifier import Classifier

OPSET = 20

EXPORT_FORMAT = 2
"""Part of every model's version: raise it if the same weights give another ONNX file."""


def convert(classifier: Classifier, image: ImageSpec) -> onnx.ModelProto:
    """Return a classifier as ONNX. Raise ModelRejected if torch cannot convert the network."""
    example = torch.zeros(2, *image.shape, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=FutureWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        try:
            program = torch.onnx.export(
                classifier,
                (example,),
                input_names=[INPUT],
                output_names=[PROBABILITIES, PREDICTION],
                dynamic_shapes={"image": {0: "N"}},
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split("\n\n")[0].split())
            raise ModelRejected(
                f"The network cannot be converted to ONNX: {reason.rstrip('.')}. Correct its code."
            ) from error
    assert program is not None
    return program.model_proto


def to_onnx(classifier: Classifier, run: RunManifest) -> bytes:
    """Return the ONNX file of a run's classifier; the same weights give the same bytes.

    The exporter's metadata is removed, because it holds paths of this machine. Raise ModelRejected
    if torch cannot convert the network.
    """
    model = convert(classifier, run.image)
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
    properties = {
        "dataset": run.dataset,
        "run": run.run,
        "classes": json.dumps(run.image.class_names),
    }
    onnx.helper.set_model_props(model, properties | ({"caveat": run.caveat} if run.caveat else {}))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
