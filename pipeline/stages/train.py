"""Dataset -> run: data-parallel training with Ray Train.

    python -m pipeline train fast --dataset NAME/VERSION

Ray starts the workers, lets them find each other and starts them again when one dies; it is never
in the path of a step. Each worker reads the dataset itself and takes its slice of every
global batch, so the batches do not depend on the number of workers.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from pipeline.artifacts.commit import commit, digest, find, load, write_file
from pipeline.artifacts.manifests import DatasetManifest, FileEntry, RunManifest
from pipeline.artifacts.storage import Storage
from pipeline.cluster import connection, resources
from pipeline.config import Train
from pipeline.console import progress, say
from pipeline.errors import StorageError
from pipeline.recipes import Training
from pipeline.training import ray_trainer
from pipeline.training.run_state import TrainJob, read_metrics, reset_run

POLL_S = 0.5


def train(settings: Train) -> RunManifest:
    """Trains, or finds the finished run of the same settings, and returns its manifest.

    A run that was interrupted goes on from its last checkpoint. Raises ResourcesMissing before
    anything starts where the cluster lacks what was asked for, TrainingFailed where the loss
    diverged.
    """
    storage = Storage(settings.root)
    dataset = load(storage, f"datasets/{settings.dataset}", DatasetManifest)
    training = settings.train
    run = f"{training.recipe}-{digest(dataset.ref, training.model_dump(mode='json'))}"
    folder = f"runs/{run}"
    if not settings.force and (done := find(storage, folder, RunManifest)):
        say(f"run {done.run} is there already")
        return done
    with storage.locked(f"{folder}/.lock"):
        if settings.force:
            reset_run(storage, folder)
        with connection.connected():
            job = TrainJob(storage, dataset, training, folder, _device(training))
            resources.require_shared(storage, folder)
            result = _fit(job)
        config = training.model_dump_json(indent=2) + "\n"
        manifest = RunManifest(
            caveat=dataset.caveat,
            run=run,
            dataset=dataset.ref,
            image=dataset.image,
            training=training.model_dump(mode="json"),
            device=job.device,
            metrics=tuple(result["metrics"]),
            checkpoint=result["checkpoint"]["path"],
            files=(
                write_file(storage, folder, "config.json", config.encode()),
                FileEntry(**result["checkpoint"]),
            ),
        )
        commit(storage, folder, manifest)
    say(f"run {run}: {_describe(manifest.metrics[-1])}")
    return manifest


def _device(training: Training) -> str:
    """The device of the workers, after a check that the cluster can hold them all."""
    gpus = resources.num_gpus()
    device = training.device
    if device == "auto":
        device = "cuda" if gpus >= training.num_workers else "cpu"
    workers = training.num_workers
    cpus = workers * training.cpus_per_worker
    resources.require(cpus=cpus, gpus=workers if device == "cuda" else 0)
    return device


def _fit(job: TrainJob) -> dict[str, Any]:
    """What rank 0 did; shows the epochs, from the lines that it writes, as they end.

    `fit` runs in a thread because in the main one it would take SIGINT over, and keep it.
    """
    outcome: Future[dict[str, Any]] = Future()

    def fit() -> None:
        try:
            outcome.set_result(ray_trainer.fit(job))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    shown = 0
    with progress("train", total=job.training.epochs) as show:
        while wait([outcome], timeout=POLL_S).not_done:
            with suppress(StorageError):
                lines = read_metrics(job.storage, job.folder)
                if len(lines) > shown:
                    shown = len(lines)
                    show(shown, f"epochs  {_describe(lines[-1])}")
    return outcome.result()


def _describe(line: dict[str, float]) -> str:
    return (
        f"loss {line['loss']:.4f}  accuracy {line['accuracy']:.4f}"
        f"  val {line['val_accuracy']:.4f}  {line['images_per_s']:,.0f} images/s"
    )
