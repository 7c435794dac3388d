"""What one training worker does: its part of every batch of every epoch, by `Step`.

Knows its rank from torch.distributed, which Ray Train has set up; of Ray it knows nothing else.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.models.mlp import Mlp
from pipeline.training import checkpoints
from pipeline.training.augment import Augment
from pipeline.training.batch_loader import BatchGroup, BatchLoader
from pipeline.training.kernels.gradient_sync import GradientSync
from pipeline.training.kernels.manual_step import ManualStep, flatten, positions
from pipeline.training.kernels.optimizers import AdamW, Sgd
from pipeline.training.run_state import TrainJob, read_metrics, write_metrics
from pipeline.training.schedule import learning_rate

EVALUATION_ROWS = 512


class Diverged(Exception):
    """The loss of a step was not a finite number; holds the epoch and the step, from 1."""


@torch.inference_mode()
def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Trains `config["job"]` from the last checkpoint, or from the start, to the end.

    Returns `metrics` (a line an epoch) and `checkpoint` (the last one's entry); or `diverged`, the
    epoch and step at which the loss stopped being finite. Float additions aside, the result is the
    same for any number of workers; for one number of workers on the CPUs of one node, or for one
    worker on any, it is the same to the bit.
    """
    job: TrainJob = config["job"]
    torch.set_num_threads(job.training.cpus_per_worker)
    # Products of numbers too small for float32's usual form are a hundred times as slow.
    torch.set_flush_denormal(True)
    worker = Worker(job)
    while worker.epoch < job.training.epochs:
        try:
            worker.metrics.append(worker.run_epoch())
        except Diverged as diverged:
            return {"diverged": diverged.args}
        last = worker.epoch == job.training.epochs
        due = worker.epoch % job.training.checkpoint_every == 0 and not last
        state = worker.state() if due else None
        if worker.rank == 0:
            write_metrics(job.storage, job.folder, worker.metrics)
            if state:
                checkpoints.save(job.storage, job.folder, state)
    state = worker.state()
    if worker.rank != 0:
        return {}
    entry = checkpoints.save(job.storage, job.folder, state)
    return {"metrics": worker.metrics, "checkpoint": entry.model_dump()}


class Worker:
    """One rank's data, model and optimizer, all on its device."""

    def __init__(self, job: TrainJob) -> None:
        training = self.training = job.training
        self.device = torch.device(job.device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.train = self._batches(
            job, "train", training.batch_size, training.seed if training.shuffle else None
        )
        self.steps = math.ceil(self.train.rows / training.batch_size)
        self.val = self._batches(job, "val", EVALUATION_ROWS * self.world_size)
        image = job.dataset.image
        self.num_classes = image.num_classes
        self.model = Mlp(image, training.hidden_sizes, seed=training.seed).to(self.device)
        self.parameters = flatten(self.model)
        self.epoch, self.metrics = 0, list[dict[str, float]]()
        if state := self._find_state(job):
            self.epoch = state.epoch
            self.model.load_state_dict(state.model)
        sizes = (image.num_pixels, *training.hidden_sizes, image.num_classes)
        self.whole_step = ManualStep(sizes, self.parameters, self.parameters)
        pixels = torch.arange(image.num_pixels)
        if not (training.deform or training.weight_decay):
            # The weights of a pixel that is always 0 have no gradient, and stay as they are.
            pixels = self.train.drop_zero_pixels()
        self.trained_at = positions(sizes, pixels).to(self.device)
        self.gradient_sync = GradientSync(self.parameters[self.trained_at])
        self.trained, gradient = self.gradient_sync.parameters, self.gradient_sync.gradient
        mine = self.trained[self.gradient_sync.part], self.gradient_sync.reduced
        self.optimizer: Sgd | AdamW = Sgd(*mine)
        if training.optimizer == "adamw":
            steps = self.epoch * self.steps
            self.optimizer = AdamW(*mine, weight_decay=training.weight_decay, steps=steps)
        # A worker alone needs no gradient for plain SGD: the step adds it to the parameters.
        self.fused_sgd = self.world_size == 1 and training.optimizer == "sgd"
        into = self.trained if self.fused_sgd else gradient
        self.step = ManualStep((len(pixels), *sizes[1:]), self.trained, into)
        self.augment: Augment | None = None
        if training.deform:
            self.augment = Augment(image.height, image.width, training.deform, self.device)
        if state:
            for name, tensor in self.optimizer.state().items():
                tensor.copy_(state.optimizer[name][self.gradient_sync.part])

    def _find_state(self, job: TrainJob) -> checkpoints.TrainState | None:
        """The checkpoint to go on from: rank 0's choice, as others may see the storage later."""
        found: list[checkpoints.TrainState | None] = [None]
        if self.rank == 0:
            self.metrics = read_metrics(job.storage, job.folder)
            found = [checkpoints.load_latest(job.storage, job.folder, epochs=len(self.metrics))]
            del self.metrics[found[0].epoch if found[0] else 0 :]
        if self.world_size > 1:
            dist.broadcast_object_list(found)
        return found[0]

    def state(self) -> checkpoints.TrainState:
        """All that is needed to go on from here, on any device; for all workers at once."""
        optimizer = self.optimizer.state().items()
        whole = {name: self.gradient_sync.join(part) for name, part in optimizer}
        return checkpoints.TrainState(self.epoch, _on_cpu(self.model.state_dict()), _on_cpu(whole))

    def run_epoch(self) -> dict[str, float]:
        """One pass over `train`, then `val`; returns the line for metrics.jsonl.

        Raises Diverged, in all workers alike, at the end of the block in which it happened.
        """
        started = perf_counter()
        if self.augment:
            self.augment.start_epoch(self.training.seed, self.epoch)
        totals, step = torch.zeros(2, 2, dtype=torch.float64, device=self.device), 0
        for block in self.train.epoch(self.epoch):
            logits = self._train_on(block, step)
            # The same on all workers, as their parameters are.
            if not self.trained.sum().isfinite():
                raise Diverged(self.epoch + 1, step + self._first_bad(logits, block))
            totals[0] += loss_and_correct(logits, block.labels)
            step += len(block.parts)
        self.parameters[self.trained_at] = self.trained
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
        }

    def _validate(self) -> Tensor:
        """`measure` of this rank's rows of `val`: over all ranks, each example is counted once."""
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        for block in self.val.epoch():
            logits = torch.empty(self.num_classes, len(block.labels), device=self.device)
            images = block.images.flatten(1).split(block.rows)
            for rows, out in zip(images, logits.split(block.rows, 1), strict=True):
                self.whole_step.forward(rows, out)
            totals += loss_and_correct(logits, block.labels)
        return totals

    def _train_on(self, block: BatchGroup, done: int) -> Tensor:
        """A step for each batch of a block, after `done` of this epoch; returns the logits.

        They are float32 (classes, rows), each from before its batch's step.
        """
        targets = torch.zeros(self.num_classes, len(block.labels), device=self.device)
        targets.scatter_(0, block.labels[None], 1.0)
        logits = torch.empty_like(targets)
        batches = zip(
            block.parts,
            block.images.flatten(1).split(block.rows),
            targets.split(block.rows, 1),
            logits.split(block.rows, 1),
            strict=True,
        )
        first = self.epoch * self.steps + done
        for number, (part, images, target, out) in enumerate(batches, first):
            rate = learning_rate(
                number,
                steps=self.training.epochs * self.steps,
                peak=self.training.learning_rate,
                schedule=self.training.schedule,
            )
            if self.augment:
                images = self.augment(images, part)
            if self.fused_sgd:
                self.step(images, target, out, -rate / part.total)
                continue
            # Gradients are sums over this rank's rows by the size of the global batch: they add up
            # over ranks to those of the mean, also where the ranks' rows differ in number.
            self.step(images, target, out, 1 / part.total)
            self.gradient_sync.reduce()
            self.optimizer.step(rate)
            self.gradient_sync.all_gather()
        return logits

    def _first_bad(self, logits: Tensor, block: BatchGroup) -> int:
        """The first step of a block, from 1, whose logits were not finite on any worker."""
        batches = enumerate(logits.split(block.rows, 1), 1)
        bad = [number for number, out in batches if not out.isfinite().all()]
        first = torch.tensor(min(bad, default=len(block.parts)), device=self.device)
        if self.world_size > 1:
            dist.all_reduce(first, dist.ReduceOp.MIN)
        return int(first)

    def _batches(
        self, job: TrainJob, split: str, batch_size: int, seed: int | None = None
    ) -> BatchLoader:
        return BatchLoader(
            job.storage,
            job.dataset,
            split,
            batch_size=batch_size,
            memory_bytes=job.training.memory_mib << 20,
            device=self.device,
            rank=self.rank,
            world_size=self.world_size,
            seed=seed,
        )


def loss_and_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss, summed, and number of correct predictions, float64 (2,), of logits (classes, N).

    A prediction is correct where no other class has as large a logit as the label.
    """
    chosen = logits.gather(0, labels[None])
    losses = logits.logsumexp(0) - chosen
    # As floats, which are added 7 times as fast as the largest of a column is found.
    as_large = torch.ge(logits, chosen, out=torch.empty_like(logits)).sum(0)
    return torch.stack([losses.sum(dtype=torch.float64), (as_large == 1).sum()])


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies without what else lies in the vectors that these are views of."""
    return {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
