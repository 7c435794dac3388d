"""The stage `evaluate`: a model version -> its metrics on `val` and `test`, and a report.

python -m pipeline evaluate --model NAME/VERSION
"""

from __future__ import annotations

from pipeline.artifacts import registry
from pipeline.artifacts.commit import digest, find, load, read_file
from pipeline.artifacts.manifests import DatasetManifest, EvaluationManifest, RunManifest
from pipeline.artifacts.replacement import Replacement
from pipeline.artifacts.storage import Storage
from pipeline.config import Evaluate
from pipeline.console import say
from pipeline.data import shards
from pipeline.evaluation import report
from pipeline.evaluation.metrics import evaluate_predictor
from pipeline.models.predictor import Predictor
from pipeline.models.summary import summarize
from pipeline.stages import figures
from pipeline.stages.figures import measured

SPLITS = ("val", "test")

EVALUATION_FORMAT = 1
"""Part of every evaluation's version: raise it if the metrics or the pages change, so that
`evaluate` writes them anew."""


@measured
def evaluate(settings: Evaluate) -> EvaluationManifest:
    """Evaluate a model version, unless that was done before; return the evaluation's manifest."""
    storage = Storage(settings.root)
    model = registry.find_model(storage, settings.model)
    folder = registry.model_folder(model.name, model.version)
    version = digest(EVALUATION_FORMAT, model.ref, model.onnx.sha256, model.dataset)
    existing = None if settings.force else find(storage, folder, EvaluationManifest)
    if existing and existing.version == version:
        say(f"evaluation of {model.ref} already exists")
        return existing
    dataset = load(storage, f"datasets/{model.dataset}", DatasetManifest)
    run = load(storage, f"runs/{model.run}", RunManifest)
    figures.begin(storage, folder, rows=sum(dataset.rows[split] for split in SPLITS))
    predictor = Predictor(storage, model)
    evaluations = {
        split: evaluate_predictor(predictor, shards.iter_shards(storage, dataset, split))
        for split in SPLITS
    }
    metrics = {split: evaluation.metrics for split, evaluation in evaluations.items()}
    for split, values in metrics.items():
        assert values["count"] == dataset.rows[split]
    network = summarize(model, read_file(storage, folder, model.onnx))
    pages = report.render(model, network, dataset, run.metrics, evaluations)
    replacement = Replacement(storage, folder, EvaluationManifest)
    manifest = EvaluationManifest(
        caveat=model.caveat,
        model=model.ref,
        version=version,
        dataset=dataset.ref,
        metrics=metrics,
        files=tuple(replacement.write(name, text.encode()) for name, text in pages.items()),
    )
    replacement.commit(manifest)
    for split, values in metrics.items():
        say(f"accuracy on {split}: {values['accuracy']:.4f}, {values['errors']} errors")
    say(f"report: {storage.display(folder)}/{manifest.report.path}")
    return manifest
