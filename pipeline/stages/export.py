"""The stage `export`: a run -> a model version, an ONNX file that takes raw pixels.

    python -m pipeline export --run RUN

The version is published only if onnxruntime predicts with it what torch predicts.
"""

from __future__ import annotations

import importlib.metadata

from pipeline.artifacts import registry
from pipeline.artifacts.commit import digest, find, load
from pipeline.artifacts.manifests import ONNX_FILE, DatasetManifest, ModelManifest, RunManifest
from pipeline.artifacts.replacement import Replacement
from pipeline.artifacts.storage import Storage
from pipeline.config import Export
from pipeline.console import say
from pipeline.data import shards
from pipeline.errors import SettingError
from pipeline.models import predictor
from pipeline.models.classifier import Classifier
from pipeline.models.factory import model_source_digest
from pipeline.models.onnx_export import EXPORT_FORMAT, OPSET, to_onnx
from pipeline.models.parity import (
    FLOAT_TOLERANCE,
    PARITY_ROWS,
    UINT8_TOLERANCE,
    check_accuracy,
    check_contract,
    check_parity,
)
from pipeline.models.quantize import quantize
from pipeline.recipes import is_mlp, read_training
from pipeline.stages import figures
from pipeline.stages.figures import measured
from pipeline.training.checkpoints import load_model

EXPORTERS = ("torch", "onnx", "onnxscript")
"""The libraries that decide the bytes of the ONNX file."""


@measured
def export(settings: Export) -> ModelManifest:
    """Export the network of a run, unless it was exported before; return the version's manifest.

    Raise ModelRejected if onnxruntime does not predict what torch predicts.
    """
    storage = Storage(settings.root)
    run = load(storage, f"runs/{settings.run}", RunManifest)
    if settings.uint8 and not is_mlp(run.training):
        raise SettingError(
            f"--uint8 rounds the network mlp only, and run {run.run} trained "
            f"{read_training(run.training).model}. Export without --uint8."
        )
    dataset = load(storage, f"datasets/{run.dataset}", DatasetManifest)
    version = _version(run, dataset, uint8=settings.uint8)
    folder = registry.model_folder(dataset.name, version)
    existing = None if settings.force else find(storage, folder, ModelManifest)
    if existing:
        say(f"model {existing.ref} already exists")
        return existing
    figures.begin(storage, folder, rows=min(PARITY_ROWS, dataset.rows["test"]))
    classifier = Classifier(load_model(storage, run)).eval()
    model = to_onnx(classifier, run)
    if settings.uint8:
        model = quantize(model)
    session = predictor.open_session(model)
    inputs, outputs = predictor.expected_tensors(run.image)
    check_contract(session, inputs, outputs)
    parity = check_parity(
        session,
        classifier,
        shards.sample(storage, dataset, "test", PARITY_ROWS),
        UINT8_TOLERANCE if settings.uint8 else FLOAT_TOLERANCE,
    )
    if settings.uint8:
        check_accuracy(session, classifier, shards.sample(storage, dataset, "val", PARITY_ROWS))
    replacement = Replacement(storage, folder, ModelManifest)
    manifest = ModelManifest(
        caveat=dataset.caveat,
        name=dataset.name,
        version=version,
        run=run.run,
        dataset=dataset.ref,
        image=run.image,
        inputs=inputs,
        outputs=outputs,
        parity_rows=parity.rows,
        parity_max_difference=parity.max_difference,
        parity_changed=parity.changed,
        weights="uint8" if settings.uint8 else "float32",
        training=run.training,
        files=(replacement.write(ONNX_FILE, model),),
    )
    replacement.commit(manifest)
    return manifest


def _version(run: RunManifest, dataset: DatasetManifest, *, uint8: bool) -> str:
    """Return the version: a digest of all that decides the bytes of the ONNX file."""
    weights = run.file(run.checkpoint).sha256
    exporter = [EXPORT_FORMAT, OPSET, *map(importlib.metadata.version, EXPORTERS)]
    source = model_source_digest(read_training(run.training))
    return digest(exporter, run.run, weights, dataset.ref, uint8, source)
