"""The stage `export`: a run -> a model version, an ONNX file that takes raw pixels.

    python -m pipeline export --run RUN

The version is published only if onnxruntime predicts with it what torch predicts.
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
    """Export the network of a run, unless it was exported before; return the version's manifest.

    Raise ModelRejected if onnxruntime does not predict what torch predicts.
    """
    storage = Storage(settings.root)
    run = load(storage, f"runs/{settings.run}", RunManifest)
    dataset = load(storage, f"datasets/{run.dataset}", DatasetManifest)
    version = _version(run, dataset, uint8=settings.uint8)
    folder = registry.model_folder(dataset.name, version)
    existing = None if settings.force else find(storage, folder, ModelManifest)
    if existing:
        say(f"model {existing.ref} already exists")
        return existing
    classifier = Classifier(load_model(storage, run)).eval()
    model = to_onnx(classifier, run)
    tolerance = FLOAT_TOLERANCE
    if settings.uint8:
        model = quantize(model)
        tolerance = UINT8_TOLERANCE
    session = predictor.open_session(model)
    inputs, outputs = predictor.expected_tensors(run.image)
    check_contract(session, inputs, outputs)
    images = shards.read_split(storage, dataset, "test").images
    difference = check_parity(session, classifier, images, tolerance)
    if settings.uint8:
        check_accuracy(session, classifier, shards.read_split(storage, dataset, "val"))
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


def _version(run: RunManifest, dataset: DatasetManifest, *, uint8: bool) -> str:
    """Return the version: a digest of all that decides the bytes of the ONNX file."""
    weights = run.file(run.checkpoint).sha256
    exporter = (OPSET, torch.__version__, onnx.__version__)
    # The default is left out: versions are the same as before `--uint8` was added.
    rounding = ["uint8"] if uint8 else []
    return digest(run.run, weights, dataset.ref, *exporter, *rounding)
