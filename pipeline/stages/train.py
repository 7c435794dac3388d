"""The stage `train`: a dataset -> a run, by data-parallel training with Ray Train.

    python -m pipeline train fast --dataset NAME/VERSION

Ray Train starts the workers, connects them, and starts them again if one dies. It takes no part in
a step: each worker reads the dataset itself and takes its slice of every global batch, so the
batches do not depend on the number of workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipeline.artifacts.commit import find, load
from pipeline.artifacts.manifests import DatasetManifest, FileEntry, RunManifest
from pipeline.artifacts.replacement import Replacement
from pipeline.artifacts.storage import Storage
from pipeline.cluster import connection, resources
from pipeline.cluster.workers import require_workers
from pipeline.config import Train
from pipeline.console import progress, say, warn
from pipeline.contract import ImageSpec
from pipeline.errors import ResourcesMissing, StorageError
from pipeline.process import signals
from pipeline.recipes import NETWORKS, Training
from pipeline.stages import figures
from pipeline.stages.figures import measured
from pipeline.training import ray_trainer
from pipeline.training.gpus import find_unusable_gpus
from pipeline.training.requirements import require_possible
from pipeline.training.run_state import TrainJob, read_metrics, reset_run, run_name

POLL_S = 0.5


@measured
def train(settings: Train) -> RunManifest:
    """Train, unless a run with the same settings is finished; return the run's manifest.

    An interrupted run continues from its last checkpoint. Raise ResourcesMissing, before anything
    starts, if the cluster is too small; raise TrainingFailed if the loss diverges.
    """
    storage = Storage(settings.root)
    dataset = load(storage, f"datasets/{settings.dataset}", DatasetManifest)
    training = settings.train
    existing = None if settings.force else _find(storage, dataset, training)
    if existing:
        say(f"run {existing.run} already exists")
        return existing
    if training.model not in NETWORKS:
        _check_network(dataset.image, training)
    with connection.connected():
        device = _device(settings)
        require_possible(training, device)
        run = run_name(dataset, training, device)
        folder = f"runs/{run}"
        job = TrainJob(storage, dataset, training, folder, device)
        with storage.locked(f"{folder}/.lock"):
            if settings.force:
                reset_run(storage, folder)
            resources.require_shared(storage, folder)
            num_rows = dataset.rows["train"] * training.epochs
            figures.begin(storage, folder, rows=num_rows, nodes=resources.num_nodes())
            result = _fit(job, settings.wait)
            config = training.model_dump_json(indent=2) + "\n"
            replacement = Replacement(storage, folder, RunManifest)
            manifest = RunManifest(
                caveat=dataset.caveat,
                run=run,
                dataset=dataset.ref,
                image=dataset.image,
                training=training.model_dump(mode="json"),
                device=device,
                metrics=tuple(result["metrics"]),
                history=tuple(result["history"]),
                checkpoint=result["checkpoint"]["path"],
                files=(
                    replacement.write("config.json", config.encode()),
                    FileEntry(**result["checkpoint"]),
                ),
            )
            replacement.commit(manifest)
    say(f"run {run}: {_describe(manifest.metrics[-1])}")
    return manifest


def _find(storage: Storage, dataset: DatasetManifest, training: Training) -> RunManifest | None:
    """Return the finished run of these settings, on a device that they allow, or None."""
    devices = ("cuda", "cpu") if training.device == "auto" else (training.device,)
    folders = [f"runs/{run_name(dataset, training, device)}" for device in devices]
    return next(filter(None, (find(storage, folder, RunManifest) for folder in folders)), None)


def _check_network(image: ImageSpec, training: Training) -> None:
    """Raise a UserError, before hours of training, if an own network cannot be exported."""
    # Built-in networks need no check, and torch and its exporter take seconds to import.
    from pipeline.models.classifier import Classifier
    from pipeline.models.factory import create_model
    from pipeline.models.onnx_export import convert

    convert(Classifier(create_model(image, training)).eval(), image)


def _device(settings: Train) -> str:
    """Return the device of the workers.

    Raise ResourcesMissing if the cluster cannot hold them, or torch cannot use a GPU asked for.
    """
    training: Training = settings.train
    workers, device = training.num_workers, str(training.device)
    if device == "auto":
        gpus = resources.num_gpus()
        device = "cuda" if gpus >= workers else "cpu"
        if 0 < gpus < workers:
            warn(f"{workers} workers need a GPU each, but the cluster has {gpus}; training on CPUs")
    gpus = 1 if device == "cuda" else 0
    require_workers(workers, cpus=training.cpus_per_worker, gpus=gpus, wait_s=settings.wait)
    if device == "cuda" and (problem := find_unusable_gpus()):
        if training.device == "cuda":
            raise ResourcesMissing(
                f"--train.device is 'cuda', but {problem}. Install a build of torch and a driver "
                "that fit the GPUs, or train with --train.device cpu."
            )
        warn(f"{problem}; training on the CPU")
        device = "cpu"
    return device


def _fit(job: TrainJob, wait_s: float) -> dict[str, Any]:
    """Train, and return rank 0's result; meanwhile a thread shows the epochs as they end.

    Ray Train runs in the main thread: an interrupt would otherwise end Ray while a thread is in its
    C++ code, which crashes.
    """
    ended = threading.Event()
    with progress("train", total=job.training.epochs) as show:
        display = threading.Thread(target=_show_epochs, args=(job, show, ended), daemon=True)
        try:
            display.start()
            with signals.own_handlers():
                return ray_trainer.fit(job, wait_s=wait_s)
        finally:
            ended.set()
            display.join(POLL_S)


def _show_epochs(job: TrainJob, show: Callable[[int, str], None], ended: threading.Event) -> None:
    """Show the epochs that rank 0 writes until training has ended."""
    shown = 0
    while not ended.wait(POLL_S):
        # Only the display depends on this read, so the next one may succeed instead.
        with suppress(StorageError):
            epochs = read_metrics(job.storage, job.folder)
            if len(epochs) > shown and not ended.is_set():
                shown = len(epochs)
                show(shown, f"epochs  {_describe(epochs[-1])}")


def _describe(metrics: dict[str, float]) -> str:
    return (
        f"loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.4f}"
        f"  val {metrics['val_accuracy']:.4f}  {metrics['images_per_s']:,.0f} images/s"
    )
