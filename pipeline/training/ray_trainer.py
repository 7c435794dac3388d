"""Run the training workers with Ray Train: start them again if one fails, and raise clear errors.

Ray Train places the workers and connects them; each calls `loop.train_worker`. Its checkpoints and
datasets are not used: `checkpoints` and `batch_loader` take their place.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)

from pipeline.cluster import ray_hooks
from pipeline.errors import StorageError, TrainingFailed, UserError
from pipeline.training.run_state import TrainJob

MAX_RESTARTS = 3
"""How many times failed workers are started again; they continue from the last checkpoint."""


def fit(job: TrainJob) -> dict[str, Any]:
    """Train `job` to the end and return the result of rank 0.

    Raise the UserError of a worker, and TrainingFailed if the loss diverged or workers died too
    often.
    """
    restarts = 0
    while True:
        try:
            result = run_workers(job)
            break
        except WorkerGroupError as error:
            causes = list(error.worker_failures.values())
            for cause in causes:
                if isinstance(cause, UserError):
                    # Another attempt would fail in the same way.
                    raise cause from None
            if restarts == MAX_RESTARTS:
                if any(_is_death(cause) for cause in causes):
                    raise TrainingFailed(
                        f"Workers died {MAX_RESTARTS + 1} times: they were killed, or ran out of "
                        "memory. Run the same command again to continue from the last checkpoint."
                    ) from None
                raise
            restarts += 1
        except ControllerError as error:
            raise TrainingFailed(f"Ray Train gave up: {error.controller_failure}.") from None
    if "diverged" in result:
        epoch, step = result["diverged"]
        raise TrainingFailed(
            f"The loss stopped being a finite number in epoch {epoch}, step {step}. Try a smaller "
            f"--train.learning-rate than {job.training.learning_rate}, or a larger "
            f"--train.batch-size than {job.training.batch_size}."
        )
    return result


def run_workers(job: TrainJob) -> dict[str, Any]:
    """Run one attempt of all workers and return the result of rank 0.

    Raise WorkerGroupError if a worker fails.
    """
    # torch takes seconds to import, so only a run that trains imports it.
    from ray.train.torch import TorchTrainer

    from pipeline.training.process_group import OwnAddressConfig

    cuda = job.device == "cuda"
    # Ray Train writes its own index there. A crash can leave it damaged, and nothing reads it.
    attempt = f"{job.folder}/.attempt"
    job.storage.delete_folder(attempt)
    trainer = ray_hooks.faster_trainer(TorchTrainer)(
        work,
        train_loop_config={"job": job},
        torch_config=OwnAddressConfig(backend="nccl" if cuda else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.training.num_workers,
            use_gpu=cuda,
            resources_per_worker={"CPU": job.training.cpus_per_worker, "GPU": int(cuda)},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=".attempt",
            storage_path=job.storage.uri(job.folder),
            # `fit` restarts workers itself, because it must not retry a user's errors.
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=0, controller_failure_limit=MAX_RESTARTS
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result: dict[str, Any] = trainer.fit().return_value
        return result
    finally:
        with suppress(StorageError):
            job.storage.delete_folder(attempt)


def work(config: dict[str, Any]) -> dict[str, Any]:
    """Train one rank; Ray Train calls this in each worker once torch.distributed is set up."""
    import torch
    from ray.train.torch import get_device

    from pipeline.training.loop import train_worker

    if config["job"].device == "cuda":
        torch.cuda.set_device(get_device())
    return train_worker(config)


def _is_death(cause: BaseException) -> bool:
    """Return whether a worker failed because its process died."""
    return isinstance(getattr(cause, "health_check_failure", cause), RayActorError)
