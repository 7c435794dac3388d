"""Ray Train as training uses it: started sooner, ended sooner, and with errors to act on.

Without torch: it takes seconds to import, and only the workers need it.
"""

from __future__ import annotations

import os
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
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from pipeline.errors import StorageError, TrainingFailed, UserError
from pipeline.training.run_state import TrainJob

CONTROLLER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""By default the controller looks at its workers every 2 s, which is longer than an epoch here, and
starts an actor that only logs which nodes a cloud is about to take away."""

LEFT_OUT = (DatasetsCallback, PlacementGroupCleanerCallback)
"""An actor that hands out datasets of Ray Data, as our workers read their own; and one that watches
over placement groups for drivers that outlive their controller, as ours does not: in Ray 2.60 it
takes 12 s to stop, as it waits for a thread that waits for it."""

MAX_WORKER_FAILURES = 3


def fit(job: TrainJob) -> dict[str, Any]:
    """Runs the workers to the end and returns what rank 0 did.

    Raises what a user can mend: an error of a worker, or TrainingFailed.
    """
    # Ray Train keeps an index there which a crash can cut short; nothing of it is needed again.
    attempt = f"{job.folder}/.attempt"
    job.storage.delete(attempt)
    cpus = job.training.cpus_per_worker
    trainer = Trainer(
        work,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.training.num_workers,
            use_gpu=job.device == "cuda",
            resources_per_worker={"CPU": cpus, "GPU": 1 if job.device == "cuda" else 0},
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
        result: dict[str, Any] = trainer.fit().return_value  # type: ignore[attr-defined]
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


def work(config: dict[str, Any]) -> dict[str, Any]:
    """In a worker: joins the process group of all workers, and trains."""
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from pipeline.training.loop import train_worker

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    address = store = None
    if rank == 0:
        host = ray.util.get_node_ip_address()
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        address = host, store.port
    host, port = broadcast_from_rank_zero(address)
    dist.init_process_group(
        "nccl" if config["job"].device == "cuda" else "gloo",
        store=store or TCPStore(host, port),
        rank=rank,
        world_size=world_size,
    )
    return train_worker(config)


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


class Trainer(DataParallelTrainer):
    """DataParallelTrainer that starts 4 s and ends 12 s sooner than TorchTrainer.

    Its controller has no runtime environment of its own, so it takes a process that Ray has ready;
    the actor that the controller asks for resources starts beside it, not after it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, LEFT_OUT)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        get_or_create_autoscaling_coordinator()
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        environment = get_env_vars_to_propagate()
        controller: Any = ray.remote(num_cpus=0, label_selector=here)(Controller)
        controller = controller.remote(environment, **parts)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())
