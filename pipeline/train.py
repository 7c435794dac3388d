"""Dataset -> run: data-parallel training with Ray Train.

    python -m pipeline train fast --dataset NAME/VERSION

Ray starts the workers, joins them in a process group and starts them again when one dies; it is
never in the path of a step. Each worker reads the dataset itself and takes its slice of every
global batch, so the batches do not depend on the number of workers.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy
from ray.train.v2.api.exceptions import TrainingFailedError

from pipeline import checkpoints, cluster
from pipeline.config import Train, Training
from pipeline.console import progress, say
from pipeline.contract import StorageError, TrainingFailed, UserError
from pipeline.manifest import (
    DatasetManifest,
    FileEntry,
    RunManifest,
    commit,
    digest,
    find,
    load,
    write_file,
)
from pipeline.storage import Storage
from pipeline.worker import METRICS, Job, read_metrics, train_worker

CONTROLLER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""By default the controller looks at its workers every 2 s, which is longer than an epoch here, and
starts an actor that only logs which nodes a cloud is about to take away."""

MAX_WORKER_FAILURES = 3
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
            checkpoints.clear(storage, folder)
            storage.delete(f"{folder}/{METRICS}")
        with cluster.connected():
            job = Job(storage, dataset, training, folder, _device(training))
            cluster.require_shared(storage, folder)
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
    gpus = cluster.num_gpus()
    device = training.device
    if device == "auto":
        device = "cuda" if gpus >= training.num_workers else "cpu"
    workers = training.num_workers
    cluster.require(cpus=workers, gpus=workers if device == "cuda" else 0)
    return device


def _fit(job: Job) -> dict[str, Any]:
    """Runs the workers to the end and returns what rank 0 did."""
    # Ray Train keeps an index there which a crash can cut short; nothing of it is needed again.
    attempt = f"{job.folder}/.attempt"
    job.storage.delete(attempt)
    trainer = Trainer(
        train_worker,  # type: ignore[arg-type]
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.training.num_workers,
            use_gpu=job.device == "cuda",
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if job.device == "cuda" else {}),
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=".attempt",
            storage_path=job.storage.uri(job.folder),
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=MAX_WORKER_FAILURES, controller_failure_limit=MAX_WORKER_FAILURES
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = _watch(trainer, job)
    except WorkerGroupError as error:
        raise _cause(error) from None
    except ControllerError as error:
        raise TrainingFailed(f"Ray Train gave up: {error.controller_failure}.") from None
    finally:
        with suppress(StorageError):
            job.storage.delete(attempt)
    if diverged := result.get("diverged"):
        epoch, step = diverged
        raise TrainingFailed(
            f"The loss stopped being a finite number in epoch {epoch}, step {step}. Try a smaller "
            f"--train.learning-rate than {job.training.learning_rate}, or a larger "
            f"--train.batch-size than {job.training.batch_size}."
        )
    return result


def _cause(error: WorkerGroupError) -> Exception:
    """What a user can mend of a failure of the workers, or the failure itself, which is a bug."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, UserError):
            return cause
    if all(isinstance(cause, RayActorError) for cause in causes):
        return TrainingFailed(
            f"Workers died {MAX_WORKER_FAILURES + 1} times: killed from outside, or for want of "
            "memory. The run goes on from its last checkpoint when the command is run again."
        )
    return error


def _causes(error: WorkerGroupError) -> list[Any]:
    return [getattr(cause, "_base_exc", cause) for cause in error.worker_failures.values()]


class Restart(DefaultFailurePolicy):
    """Starts workers again that died, but not for an error that a user has to mend."""

    def _is_retryable_error(self, training_failed_error: TrainingFailedError) -> bool:
        if isinstance(training_failed_error, WorkerGroupError) and any(
            isinstance(cause, UserError) for cause in _causes(training_failed_error)
        ):
            return False
        retryable: bool = super()._is_retryable_error(training_failed_error)
        return retryable


class Controller(TrainController):
    """Ray Train's controller with a failure policy and settings of its own."""

    def __init__(self, environment: dict[str, str], **parts: Any) -> None:
        os.environ.update(CONTROLLER_ENVIRONMENT | environment)
        parts["failure_policy"] = Restart(parts["train_run_context"].run_config.failure_config)
        super().__init__(**parts)


class Trainer(TorchTrainer):
    """TorchTrainer that starts 2 s and ends 12 s sooner.

    Its controller has no runtime environment of its own, so it takes a process that Ray has ready;
    the actor that the controller asks for resources starts beside it, not after it. There is none
    that watches over placement groups: it is for drivers that outlive their controller, which ours
    does not, and in Ray 2.60 stopping it takes 12 s, as it waits for a thread that waits for it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        get_or_create_autoscaling_coordinator()
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        environment = get_env_vars_to_propagate()
        controller: Any = ray.remote(num_cpus=0, label_selector=here)(Controller)
        controller = controller.remote(environment, **parts)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


def _watch(trainer: TorchTrainer, job: Job) -> dict[str, Any]:
    """Runs `fit` and shows the epochs, from the lines that the worker writes, as they end.

    `fit` runs in a thread because in the main one it would take SIGINT over, and keep it.
    """
    outcome: Future[Any] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit().return_value)  # type: ignore[attr-defined]
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
    result = outcome.result()
    assert isinstance(result, dict)
    return result


def _describe(line: dict[str, float]) -> str:
    return (
        f"loss {line['loss']:.4f}  accuracy {line['accuracy']:.4f}"
        f"  val {line['val_accuracy']:.4f}  {line['images_per_s']:,.0f} images/s"
    )
