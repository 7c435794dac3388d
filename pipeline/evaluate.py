"""Model version -> metrics over labelled splits, and the report that shows them.

python -m pipeline evaluate --model NAME/VERSION
"""

from __future__ import annotations

import json

from pipeline import registry, report, shards
from pipeline.config import Evaluate
from pipeline.console import say
from pipeline.manifest import (
    DatasetManifest,
    EvaluationManifest,
    RunManifest,
    commit,
    find,
    load,
    read_file,
    write_file,
)
from pipeline.metrics import measure
from pipeline.predictor import Predictor
from pipeline.storage import Storage

SPLITS = ("val", "test")


def evaluate(settings: Evaluate) -> EvaluationManifest:
    """Evaluates a model version over `val` and `test`, or finds that done; writes the report."""
    storage = Storage(settings.root)
    model = registry.find_model(storage, settings.model)
    folder = registry.folder(model.name, model.version)
    if not settings.force and (done := find(storage, folder, EvaluationManifest)):
        say(f"evaluation of {model.ref} is there already")
        return done
    make = "python -m pipeline preprocess"
    dataset = load(storage, f"datasets/{model.dataset}", DatasetManifest, make=make)
    run = load(storage, f"runs/{model.run}", RunManifest, make="python -m pipeline train")
    lines = read_file(storage, f"runs/{run.run}", run.file("metrics.jsonl")).splitlines()
    predictor = Predictor(storage, model)
    found = {
        split: measure(predictor, shards.read_shards(storage, dataset, split)) for split in SPLITS
    }
    for split, evaluation in found.items():
        assert evaluation.metrics["count"] == dataset.rows[split]
    pages = report.render(model, dataset, [json.loads(line) for line in lines], found)
    metrics = {split: evaluation.metrics for split, evaluation in found.items()}
    manifest = EvaluationManifest(
        caveat=model.caveat,
        model=model.ref,
        dataset=dataset.ref,
        metrics=metrics,
        files=tuple(
            write_file(storage, folder, name, text.encode()) for name, text in pages.items()
        ),
    )
    commit(storage, folder, manifest)
    return manifest
