"""The training loop of one worker: epochs of steps, validation, metrics and checkpoints.

Ray Train starts the workers and connects them with torch.distributed. Nothing here imports Ray.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.models.mlp import Mlp
from pipeline.training import checkpoints
from pipeline.training.augment import Augment
from pipeline.training.batch_loader import BatchGroup, BatchLoader, Order
from pipeline.training.kernels.manual_step import ManualStep, flatten
from pipeline.training.parallel_step import ParallelStep
from pipeline.training.run_state import TrainJob, read_metrics, write_metrics
from pipeline.training.schedule import learning_rate

EVALUATION_ROWS = 512
"""Rows of `val` per worker and batch: their activations stay in a CPU's cache."""


class Diverged(Exception):
    """The loss stopped being a finite number. Arguments: the epoch and the step, from 1."""


@torch.inference_mode()
def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train `config["job"]` to its last epoch, from the last checkpoint if there is one.

    Return `metrics` (one dict per epoch) and `checkpoint` (the entry of the last one), or
    `diverged` (epoch and step) if the loss diverged; ranks other than 0 return an empty dict.

    The result is the same to the bit for the same numbers of CPU workers of one node and of their
    CPUs in each epoch, on CPUs of one type. Otherwise it differs by the rounding of float32 sums.
    """
    job: TrainJob = config["job"]
    torch.set_num_threads(job.training.cpus_per_worker)
    # CPUs multiply denormal numbers about a hundred times slower than others.
    torch.set_flush_denormal(True)
    worker = Worker(job)
    while worker.epoch < job.training.epochs:
        try:
            worker.metrics.append(worker.run_epoch())
        except Diverged as diverged:
            return {"diverged": diverged.args}
        is_last = worker.epoch == job.training.epochs
        is_due = worker.epoch % job.training.checkpoint_every == 0 and not is_last
        state = worker.state() if is_due else None
        if worker.rank == 0:
            # The metrics first: see `checkpoints.load_latest`.
            write_metrics(job.storage, job.folder, worker.metrics)
            if state:
                checkpoints.save(job.storage, job.folder, state)
    state = worker.state()
    if worker.rank != 0:
        return {}
    entry = checkpoints.save(job.storage, job.folder, state)
    return {"metrics": worker.metrics, "checkpoint": asdict(entry)}


class Worker:
    """One rank of a training job: its slice of every batch, and its copy of the model."""

    def __init__(self, job: TrainJob) -> None:
        training, image = job.training, job.dataset.image
        self.training = training
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = torch.device(job.device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        order: Order = "shuffled" if training.shuffle else "file"
        self.train = self._loader(job, "train", order, training.batch_size)
        self.val = self._loader(job, "val", "any", EVALUATION_ROWS * self.world_size)
        self.steps_per_epoch = math.ceil(self.train.rows / training.batch_size)
        self.num_classes = image.num_classes

        self.model = Mlp(image, training.hidden_sizes, seed=training.seed).to(self.device)
        self.parameters = flatten(self.model)
        self.epoch = 0
        self.metrics = list[dict[str, float]]()
        state = self._load_state(job)
        if state:
            self.epoch = state.epoch
            self.model.load_state_dict(state.model)

        sizes = (image.num_pixels, *training.hidden_sizes, image.num_classes)
        # Validation uses the forward pass alone, so this gradient is never written.
        self.network = ManualStep(sizes, self.parameters, gradient=self.parameters)
        pixels = torch.arange(image.num_pixels)
        if not (training.deform or training.weight_decay):
            # The weights of a pixel that is always 0 have no gradient and never change, unless
            # augmentation moves ink there or weight decay shrinks them.
            pixels = self.train.drop_zero_pixels()
        self.step = ParallelStep(
            training,
            sizes,
            self.parameters,
            pixels,
            num_steps=self.epoch * self.steps_per_epoch,
        )
        if state:
            self.step.load_optimizer_state(state.optimizer)
        self.augment: Augment | None = None
        if training.deform:
            self.augment = Augment(image.height, image.width, training.deform, self.device)

    def state(self) -> checkpoints.TrainState:
        """Return the state for a checkpoint, on the CPU; all workers must call it at once."""
        optimizer = self.step.optimizer_state()
        return checkpoints.TrainState(
            self.epoch, _copied_to_cpu(self.model.state_dict()), _copied_to_cpu(optimizer)
        )

    def run_epoch(self) -> dict[str, float]:
        """Train for one pass over `train`, then validate; return the metrics of the epoch.

        Raise Diverged, on all workers alike, at the end of the group of batches in which the loss
        diverged.
        """
        started = perf_counter()
        if self.augment:
            self.augment.start_epoch(self.training.seed, self.epoch)
        # Rows: train and val. Columns: summed loss and number of correct predictions.
        totals = torch.zeros(2, 2, dtype=torch.float64, device=self.device)
        step = 0
        for group in self.train.epoch(self.epoch):
            logits = self._train_on(group, step)
            if not self.step.is_finite():
                raise Diverged(self.epoch + 1, step + self._first_diverged(logits, group))
            totals[0] += loss_and_correct(logits, group.labels)
            step += len(group.slices)
        self.step.publish()
        seconds = perf_counter() - started
        totals[1] = self._validate()
        if self.world_size > 1:
            dist.all_reduce(totals)
        (loss, correct), (val_loss, val_correct) = totals.tolist()
        if not math.isfinite(loss + val_loss):
            raise Diverged(self.epoch + 1, step)
        self.epoch += 1
        waited_s = self.train.waited_s + self.val.waited_s
        self.train.waited_s = self.val.waited_s = 0.0
        return {
            "epoch": self.epoch,
            "loss": loss / self.train.rows,
            "accuracy": correct / self.train.rows,
            "val_loss": val_loss / self.val.rows,
            "val_accuracy": val_correct / self.val.rows,
            "images_per_s": self.train.rows / seconds,
            "data_wait_s": waited_s,
            "num_workers": self.world_size,
            "cpus_per_worker": self.training.cpus_per_worker,
        }

    def _train_on(self, group: BatchGroup, step: int) -> Tensor:
        """Take a step for each batch of a group, the first of which is number `step` of the epoch.

        Return this rank's logits, float32 (classes, rows), each from before its batch's update.
        """
        # One-hot targets. Columns are rows of the batches, as `ManualStep` explains.
        targets = torch.zeros(self.num_classes, len(group.labels), device=self.device)
        targets.scatter_(0, group.labels[None], 1.0)
        logits = torch.empty_like(targets)
        batches = zip(
            group.slices,
            group.images.flatten(1).split(group.rows),
            targets.split(group.rows, 1),
            logits.split(group.rows, 1),
            strict=True,
        )
        first_step = self.epoch * self.steps_per_epoch + step
        for number, (rank_slice, images, target, out) in enumerate(batches, first_step):
            rate = learning_rate(
                number,
                steps=self.training.epochs * self.steps_per_epoch,
                peak=self.training.learning_rate,
                schedule=self.training.schedule,
            )
            if self.augment:
                images = self.augment(images, rank_slice)
            self.step(images, target, out, rank_slice.total, rate)
        return logits

    def _validate(self) -> Tensor:
        """Return `loss_and_correct` of this rank's rows of `val`."""
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for group in self.val.epoch():
            logits = torch.empty(self.num_classes, len(group.labels), device=self.device)
            images = group.images.flatten(1).split(group.rows)
            for rows, out in zip(images, logits.split(group.rows, 1), strict=True):
                self.network.forward(rows, out)
            totals += loss_and_correct(logits, group.labels)
        return totals

    def _first_diverged(self, logits: Tensor, group: BatchGroup) -> int:
        """Return the first step of a group, from 1, with logits not finite on any worker."""
        batches = enumerate(logits.split(group.rows, 1), 1)
        diverged = [number for number, out in batches if not out.isfinite().all()]
        first = torch.tensor(min(diverged, default=len(group.slices)), device=self.device)
        if self.world_size > 1:
            dist.all_reduce(first, dist.ReduceOp.MIN)
        return int(first)

    def _load_state(self, job: TrainJob) -> checkpoints.TrainState | None:
        """Return the checkpoint to continue from, and load the metrics up to it.

        Rank 0 chooses it for all, because a shared storage may show files to others later.
        """
        state: checkpoints.TrainState | None = None
        if self.rank == 0:
            self.metrics = read_metrics(job.storage, job.folder)
            state = checkpoints.load_latest(job.storage, job.folder, epochs=len(self.metrics))
            del self.metrics[state.epoch if state else 0 :]
        if self.world_size > 1:
            states = [state]
            dist.broadcast_object_list(states)
            state = states[0]
        return state

    def _loader(self, job: TrainJob, split: str, order: Order, batch_size: int) -> BatchLoader:
        return BatchLoader(
            job.storage,
            job.dataset,
            split,
            order=order,
            batch_size=batch_size,
            memory_bytes=job.training.memory_mib << 20,
            device=self.device,
            rank=self.rank,
            world_size=self.world_size,
            seed=job.training.seed,
        )


def loss_and_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed loss and the number of correct predictions, float64 (2,).

    Logits are float32 (classes, N). A prediction is correct if the label's logit is larger than
    those of all other classes.
    """
    label_logits = logits.gather(0, labels[None])
    losses = logits.logsumexp(0) - label_logits
    # Count logits >= the label's, as floats: 7 times as fast as an argmax along columns.
    num_as_large = torch.ge(logits, label_logits, out=torch.empty_like(logits)).sum(0)
    return torch.stack([losses.sum(dtype=torch.float64), (num_as_large == 1).sum()])


def _copied_to_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that are views, so that a checkpoint does not hold the vectors behind them."""
    return {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
