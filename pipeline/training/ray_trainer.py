"""Run the training function with Ray Train, again if workers die, and raise clear errors."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    PreemptionError,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)

from pipeline.cluster import ray_hooks
from pipeline.cluster.workers import wait_for_workers
from pipeline.errors import SettingError, StorageError, TrainingFailed, UserError
from pipeline.training.requirements import GraphRefused
from pipeline.training.run_state import RAY_FILES, TrainJob, newest_checkpoint

MAX_RESTARTS = 3
"""How many times in a row failed workers are started again without a checkpoint in between."""


def fit(job: TrainJob, *, wait_s: float) -> dict[str, Any]:
    """Train `job` to the end and return the result of rank 0.

    Workers that fail are started again and continue from the last checkpoint. After `wait_s`
    without a node in the place of a lost one, they are fewer, if the settings allow it. Raise the
    UserError of a worker, TrainingFailed if workers fail too often, and ResourcesMissing if nodes
    were lost and not replaced.
    """
    training = job.training
    num_workers, restarts = training.num_workers, 0
    checkpoint = newest_checkpoint(job)
    while True:
        try:
            return run_workers(job, num_workers)
        except TrainingFailedError as error:
            causes = _require_restartable(error)
        except RayActorError as error:
            # Ray Train's controller, which runs on the node of this command, has died.
            causes = [error]
        refusals = [cause for cause in causes if isinstance(cause, GraphRefused)]
        if refusals:
            job = _without_graph(job, refusals[0])
            continue
        newest = newest_checkpoint(job)
        restarts = 1 if newest != checkpoint else restarts + 1
        checkpoint = newest
        if restarts > MAX_RESTARTS:
            raise TrainingFailed(
                f"Workers failed {restarts} times since the last checkpoint: {_describe(causes[0])}"
                ". Run the same command again to continue from there."
            ) from None
        num_workers = wait_for_workers(
            training.num_workers,
            training.min_workers or training.num_workers,
            cpus=training.cpus_per_worker,
            gpus=int(job.device == "cuda"),
            wait_s=wait_s,
        )
        logging.getLogger(__name__).warning(
            "Workers failed (%s); %d of them continue from the last checkpoint.",
            _describe(causes[0]),
            num_workers,
        )


def run_workers(job: TrainJob, num_workers: int) -> dict[str, Any]:
    """Run one attempt of all workers and return the result of rank 0.

    Raise TrainingFailedError if a worker fails.
    """
    # torch takes seconds to import, so only a run that trains imports it.
    from ray.train.torch import TorchTrainer

    from pipeline.training.process_group import OwnAddressConfig

    training, use_gpu = job.training, job.device == "cuda"
    _delete_ray_files(job)
    runs, _, run = job.folder.rpartition("/")
    trainer = ray_hooks.faster_trainer(TorchTrainer)(
        work,
        train_loop_config={"job": job},
        torch_config=OwnAddressConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": training.cpus_per_worker, "GPU": int(use_gpu)},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=run,
            storage_path=job.storage.uri(runs),
            # `fit` starts workers again itself, because it must not repeat a user's errors.
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result: dict[str, Any] = trainer.fit().return_value
        return result
    finally:
        with suppress(StorageError):
            _delete_ray_files(job)


def work(config: dict[str, Any]) -> dict[str, Any]:
    """Train one rank; Ray Train calls this in each worker once torch.distributed is set up."""
    # The driver need not import what only workers use.
    from pipeline.training.gpus import explained_errors
    from pipeline.training.loop import train_loop

    with explained_errors():
        return train_loop(config)


def _delete_ray_files(job: TrainJob) -> None:
    """Delete Ray Train's own record of the run: a crash can damage it, and nothing reads it."""
    for name in RAY_FILES:
        job.storage.delete(f"{job.folder}/{name}")


def _require_restartable(error: TrainingFailedError) -> list[BaseException]:
    """Return why workers failed, deaths first, if another attempt may succeed.

    Otherwise raise the error: that of a user, or a bug.
    """
    if isinstance(error, PreemptionError):
        return [error]
    if isinstance(error, ControllerError):
        # For example, a node was lost while the workers started.
        return [error.controller_failure]
    assert isinstance(error, WorkerGroupError)
    causes: list[BaseException] = sorted(
        error.worker_failures.values(), key=lambda cause: not _is_death(cause)
    )
    for cause in causes:
        if isinstance(cause, UserError):
            raise cause from None
    if not any(map(_is_restartable, causes)):
        raise error
    return sorted(causes, key=_is_restartable, reverse=True)


def _is_restartable(cause: BaseException) -> bool:
    """Return whether a worker failed because a process or a connection was lost."""
    from torch.distributed import DistError

    lost = (GraphRefused, ConnectionError, TimeoutError, DistError)
    # gloo raises RuntimeError with the name of its source file.
    return _is_death(cause) or isinstance(cause, lost) or "gloo" in str(cause)


def _without_graph(job: TrainJob, refused: GraphRefused) -> TrainJob:
    """Return the job without CUDA graphs. Raise SettingError if the settings ask for them."""
    reason = f"--train.model {job.training.model} does not allow a CUDA graph ({refused})"
    if job.training.step == "fast":
        raise SettingError(f"{reason}, which --train.step fast needs. Use --train.step textbook.")
    logging.getLogger(__name__).warning("%s. It trains with --train.step textbook.", reason)
    return replace(job, training=job.training.model_copy(update={"step": "textbook"}))


def _is_death(cause: BaseException) -> bool:
    """Return whether a worker failed because its process died."""
    return isinstance(getattr(cause, "health_check_failure", cause), RayActorError)


def _describe(cause: BaseException) -> str:
    if isinstance(cause, PreemptionError):
        return "their node was taken away"
    if _is_death(cause):
        return "they were killed, their node was lost, or it ran out of memory or disk"
    first_line = next(iter(str(cause).strip().splitlines()), "no message")
    return f"{type(cause).__name__}: {first_line.rstrip('.')}"
