"""Run -> model version: ONNX with the scaling in the graph, published only if it predicts as torch.

python -m pipeline export --run RUN
"""

from __future__ import annotations

import onnx
import torch

from pipeline.artifacts import registry
from pipeline.artifacts.commit import commit, digest, find, load, write_file
from pipeline.artifacts.manifests import DatasetManifest, ModelManifest, RunManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Export
from pipeline.console import say
from pipeline.data import shards
from pipeline.models import predictor
from pipeline.models.mlp import Classifier
from pipeline.models.onnx_export import OPSET, to_onnx
from pipeline.models.parity import (
    FLOAT_TOLERANCE,
    UINT8_TOLERANCE,
    check_accuracy,
    check_contract,
    check_parity,
)
from pipeline.models.quantize import quantize
from pipeline.models.triton import triton_config
from pipeline.training.checkpoints import load_model


def export(settings: Export) -> ModelManifest:
    """Exports the network of a run, or finds it exported, and returns the manifest of the version.

    Raises ModelRejected where onnxruntime does not predict what torch predicts.
    """
    storage = Storage(settings.root)
    run = load(storage, f"runs/{settings.run}", RunManifest)
    dataset = load(storage, f"datasets/{run.dataset}", DatasetManifest)
    weights = run.file(run.checkpoint).sha256
    version_inputs = (
        OPSET,
        torch.__version__,
        onnx.__version__,
        *(["uint8"] if settings.uint8 else []),
    )
    version = digest(run.run, weights, dataset.ref, *version_inputs)
    folder = registry.model_folder(dataset.name, version)
    if not settings.force and (done := find(storage, folder, ModelManifest)):
        say(f"model {done.ref} is there already")
        return done
    classifier = Classifier(load_model(storage, run)).eval()
    model = to_onnx(classifier, run)
    bound = FLOAT_TOLERANCE
    if settings.uint8:
        model, bound = quantize(model), UINT8_TOLERANCE
    session = predictor.open_session(model)
    images = shards.read_split(storage, dataset, "test").images
    difference = check_parity(session, classifier, images, bound)
    if settings.uint8:
        check_accuracy(session, classifier, shards.read_split(storage, dataset, "val"))
    inputs, outputs = predictor.expected_tensors(run.image)
    check_contract(session, inputs, outputs)
    manifest = ModelManifest(
        caveat=dataset.caveat,
        name=dataset.name,
        version=version,
        run=run.run,
        dataset=dataset.ref,
        image=run.image,
        inputs=inputs,
        outputs=outputs,
        parity_max_difference=difference,
        training=run.training,
        files=(
            write_file(storage, folder, "model.onnx", model),
            write_file(
                storage, folder, "config.pbtxt", triton_config(dataset.name, inputs, outputs)
            ),
        ),
    )
    commit(storage, folder, manifest)
    return manifest
