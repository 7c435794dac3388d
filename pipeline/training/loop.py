"""The training function, which Ray Train calls in each worker. Read it first.

It has the shape of Ray's own guides. What is special is in the module of its name: `batch_loader`
(the batches do not depend on the number of workers), `textbook_step` and the faster
`kernels.mlp_step` (the forward and backward pass and the update), `recorder` (metrics and
checkpoints).
"""

from __future__ import annotations

import math
import os
from time import perf_counter
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device
from torch import Tensor

from pipeline.errors import TrainingFailed
from pipeline.models.factory import create_model
from pipeline.recipes import Training
from pipeline.training.augment import Augment
from pipeline.training.batch_loader import BatchLoader, Order
from pipeline.training.gpus import require_memory
from pipeline.training.history import layout
from pipeline.training.recorder import Recorder
from pipeline.training.run_state import TrainJob
from pipeline.training.schedule import learning_rate
from pipeline.training.steps import create_step

EVALUATION_ROWS = 512
"""Rows of `val` per worker and batch: their activations stay in a CPU's cache."""


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Train `config["job"]` to its last epoch, from the last checkpoint if there is one.

    Return `metrics` (one dict per epoch), `checkpoint` (the entry of the last one, on rank 0) and
    `history`. Raise TrainingFailed, on all workers alike, if the loss stops being a finite number.

    The result is the same to the bit for the same workers in each epoch, on CPUs or GPUs of one
    type. Otherwise it differs by the rounding of float32 sums.
    """
    job: TrainJob = config["job"]
    training, image = job.training, job.dataset.image
    world_size = ray.train.get_context().get_world_size()
    device = get_device()
    configure_torch(training, device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        require_memory(job.dataset, training.memory_mib << 20, free)

    train = _open_loader(job, "train", training.batch_size, device)
    val = _open_loader(job, "val", EVALUATION_ROWS * world_size, device)
    steps_per_epoch = math.ceil(train.rows / training.batch_size)
    rate = learning_rate(
        training.schedule, steps=training.epochs * steps_per_epoch, peak=training.learning_rate
    )
    augment = None
    if training.deform:
        augment = Augment(image.height, image.width, training.deform, training.seed, device)
    model = create_model(image, training)
    step = create_step(training, image, model, train, rate, augment, device)
    recorder = Recorder(job, step, layout(training, world_size, device), device)

    first_epoch, first_step, sums = recorder.resume()
    for epoch in range(first_epoch, training.epochs):
        started, steps = perf_counter(), first_step
        for group in train.epoch(epoch, first_step):
            losses, correct = step.train(group, epoch * steps_per_epoch + steps)
            if not step.is_finite():
                raise diverged(training, epoch + 1, steps + first_infinite(losses))
            sums += torch.stack([losses.sum(), correct])
            steps += len(group.slices)
            is_due = recorder.is_checkpoint_due(len(group.slices))
            if is_due and steps < steps_per_epoch:
                recorder.save(epoch, steps, sums)
        rows = train.rows - first_step * training.batch_size
        images_per_s = rows / (perf_counter() - started)

        val_sums = torch.zeros_like(sums)
        for group in val.epoch():
            val_sums += step.evaluate(group)
        loss, accuracy = mean_over_workers(sums, train.rows)
        val_loss, val_accuracy = mean_over_workers(val_sums, val.rows)
        if not math.isfinite(loss + val_loss):
            raise diverged(training, epoch + 1, steps)
        recorder.end_epoch(
            {
                "epoch": epoch + 1,
                "loss": loss,
                "accuracy": accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "images_per_s": images_per_s,
                "data_wait_s": train.waited_s + val.waited_s,
                "bytes_read": train.bytes_read + val.bytes_read,
                "num_workers": world_size,
                "cpus_per_worker": training.cpus_per_worker,
            }
        )
        sums.zero_()
        first_step, train.waited_s, val.waited_s = 0, 0.0, 0.0
        train.bytes_read = val.bytes_read = 0
        if is_due and epoch + 1 < training.epochs:
            recorder.save(epoch + 1, 0, sums)
    return recorder.save(training.epochs, 0, sums)


def configure_torch(training: Training, device: torch.device) -> None:
    """Set the threads, the precision and the determinism of this process."""
    torch.set_num_threads(training.cpus_per_worker)
    # CPUs multiply denormal numbers about a hundred times slower than others.
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high" if training.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = training.precision == "tf32"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # cuBLAS reads it when it is first used, and needs it to give the same bits again.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _open_loader(job: TrainJob, split: str, batch_size: int, device: torch.device) -> BatchLoader:
    """Open this worker's share of a split; `train` is shuffled if the settings say so."""
    context, training = ray.train.get_context(), job.training
    order: Order = "any"
    if split == "train":
        order = "shuffled" if training.shuffle else "file"
    return BatchLoader(
        job.storage,
        job.dataset,
        split,
        order=order,
        batch_size=batch_size,
        memory_bytes=training.memory_mib << 20,
        device=device,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        seed=training.seed,
    )


def mean_over_workers(sums: Tensor, rows: int) -> tuple[float, float]:
    """Return the loss and the accuracy on `rows` rows of all workers, given each worker's sums."""
    totals = sums.clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(totals)
    loss, correct = (totals / rows).tolist()
    return loss, correct


def first_infinite(losses: Tensor) -> int:
    """Return the first step, from 1, whose loss is not a finite number on some worker."""
    infinite = (~losses.isfinite()).nonzero()
    first = infinite[0, 0] + 1 if len(infinite) else torch.tensor(len(losses))
    first = first.to(losses.device)
    if dist.get_world_size() > 1:
        dist.all_reduce(first, dist.ReduceOp.MIN)
    return int(first)


def diverged(training: Training, epoch: int, step: int) -> TrainingFailed:
    """Return the error of a loss that stopped being a finite number; epoch and step are from 1."""
    return TrainingFailed(
        f"The loss stopped being a finite number in epoch {epoch}, step {step}. Try a smaller "
        f"--train.learning-rate than {training.learning_rate}, or a larger --train.batch-size than "
        f"{training.batch_size}."
    )
