"""What one training worker does: every epoch from tensors that it holds, and every batch's share.

Knows its rank from torch.distributed, which Ray Train has set up; of Ray it knows nothing else.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import checkpoints, shards
from pipeline.config import Training
from pipeline.manifest import DatasetManifest
from pipeline.model import Mlp
from pipeline.storage import Storage

METRICS = "metrics.jsonl"
EVALUATION_BATCH = 10_000


@dataclass(frozen=True)
class Job:
    """What a worker is told: where the data are, how to train, where to put the run."""

    storage: Storage
    dataset: DatasetManifest
    training: Training
    folder: str
    device: str


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Trains `config["job"]` from the last checkpoint, or from the start, to the end.

    Returns `metrics` (a line an epoch) and `checkpoint` (the last one's entry); or `diverged`, the
    epoch in which the loss stopped being finite. Float additions aside, the result is the same for
    any number of workers; for one number of workers on CPU, it is the same to the bit.
    """
    job: Job = config["job"]
    torch.set_num_threads(1)
    worker = Worker(job)
    while worker.epoch < job.training.epochs:
        line = worker.run_epoch()
        if not all(math.isfinite(value) for value in line.values()):
            return {"diverged": worker.epoch}
        worker.metrics.append(line)
        if worker.rank == 0:
            write_metrics(job.storage, job.folder, worker.metrics)
            last = worker.epoch == job.training.epochs
            if worker.epoch % job.training.checkpoint_every == 0 and not last:
                checkpoints.save(job.storage, job.folder, worker.state())
    if worker.rank != 0:
        return {}
    entry = checkpoints.save(job.storage, job.folder, worker.state())
    return {"metrics": worker.metrics, "checkpoint": entry.model_dump()}


class Worker:
    """One rank's data, model and optimizer, all on its device."""

    def __init__(self, job: Job) -> None:
        self.training, self.device = job.training, torch.device(job.device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        started = time.perf_counter()
        train, val = (self._read(job, split) for split in ("train", "val"))
        self._data_wait_s = time.perf_counter() - started
        self.images, self.labels = train
        self.val = tuple(tensor.tensor_split(self.world_size)[self.rank] for tensor in val)
        self.model = Mlp(job.dataset.image, job.training.hidden_sizes, seed=job.training.seed)
        self.model.to(self.device)
        self.parameters = flatten(self.model)
        self.optimizer = self._make_optimizer()
        self.epoch, self.metrics = 0, list[dict[str, float]]()
        if state := checkpoints.newest(job.storage, job.folder):
            self.epoch = state.epoch
            self.metrics = read_metrics(job.storage, job.folder)[: state.epoch]
            self.model.load_state_dict(state.model)
            self.optimizer.load_state_dict(state.optimizer)

    def state(self) -> checkpoints.State:
        """All that is needed to go on from here, on any device."""
        model = {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}
        return checkpoints.State(self.epoch, model, self.optimizer.state_dict())

    def run_epoch(self) -> dict[str, float]:
        """One pass over `train`, then `val`; returns the line for metrics.jsonl."""
        started = time.perf_counter()
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        order = self._order()
        batch_size = self.training.batch_size
        steps = math.ceil(len(self.labels) / batch_size)
        for number in range(steps):
            start = number * batch_size
            rate = learning_rate(
                self.epoch * steps + number,
                steps=self.training.epochs * steps,
                peak=self.training.learning_rate,
                schedule=self.training.schedule,
            )
            self._step(start, min(start + batch_size, len(self.labels)), order, rate, totals)
        self._add_up(totals)
        loss, correct = (totals / len(self.labels)).tolist()
        seconds = time.perf_counter() - started
        self.epoch += 1
        val_loss, val_accuracy = self.validate()
        # All of the waiting was done before the first epoch of this process.
        data_wait_s, self._data_wait_s = self._data_wait_s, 0.0
        return {
            "epoch": self.epoch,
            "loss": loss,
            "accuracy": correct,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "images_per_s": len(self.labels) / seconds,
            "data_wait_s": data_wait_s,
        }

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Mean loss and accuracy over `val`, every example counted once over all workers."""
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        for images, labels in zip(*(t.split(EVALUATION_BATCH) for t in self.val), strict=True):
            logits = self.model(images)
            totals[0] += F.cross_entropy(logits, labels, reduction="sum")
            totals[1] += (logits.argmax(-1) == labels).sum()
            totals[2] += len(labels)
        self._add_up(totals)
        loss, correct, count = totals.tolist()
        return loss / count, correct / count

    def _step(
        self, start: int, stop: int, order: Tensor | None, rate: float, totals: Tensor
    ) -> None:
        """One step on this rank's slice of the global batch start..stop.

        The loss is a sum divided by the size of the global batch, so gradients add up over ranks
        to those of the mean, also where the slices differ in size.
        """
        mine = slice(
            start + (stop - start) * self.rank // self.world_size,
            start + (stop - start) * (self.rank + 1) // self.world_size,
        )
        index = mine if order is None else order[mine]
        images, labels = self.images[index], self.labels[index]
        gradient = self.parameters.grad
        assert gradient is not None
        gradient.zero_()
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (loss / (stop - start)).backward()
        if self.world_size > 1:
            dist.all_reduce(gradient)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            totals[0] += loss
            totals[1] += (logits.argmax(-1) == labels).sum()

    def _order(self) -> Tensor | None:
        """The order of examples in this epoch, the same on all workers; None for file order."""
        if not self.training.shuffle:
            return None
        generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.labels), generator=generator).to(self.device)

    def _add_up(self, totals: Tensor) -> None:
        if self.world_size > 1:
            dist.all_reduce(totals)

    def _read(self, job: Job, split: str) -> tuple[Tensor, Tensor]:
        data = shards.read_split(job.storage, job.dataset, split)
        images = torch.from_numpy(data.images).to(self.device)
        return images, torch.from_numpy(data.labels).to(self.device, torch.int64)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        rate = self.training.learning_rate
        if self.training.optimizer == "sgd":
            return torch.optim.SGD([self.parameters], lr=rate)
        decay = self.training.weight_decay
        return torch.optim.AdamW([self.parameters], lr=rate, weight_decay=decay, fused=True)


def write_metrics(storage: Storage, folder: str, metrics: list[dict[str, float]]) -> None:
    """Writes metrics.jsonl whole, a line an epoch: before the checkpoint of its last epoch."""
    lines = "".join(json.dumps(line) + "\n" for line in metrics)
    storage.write(f"{folder}/{METRICS}", lines.encode())


def read_metrics(storage: Storage, folder: str) -> list[dict[str, float]]:
    """The lines of metrics.jsonl so far."""
    try:
        return [json.loads(line) for line in storage.read(f"{folder}/{METRICS}").splitlines()]
    except FileNotFoundError:
        return []


def flatten(model: nn.Module) -> nn.Parameter:
    """Moves all parameters of a model, and their gradients, into one vector, as views of it.

    One all-reduce and one optimizer step on the vector then serve them all.
    """
    parameters = list(model.parameters())
    vector = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
    vector.grad = torch.zeros_like(vector)
    sizes = [p.numel() for p in parameters]
    for p, value, grad in zip(
        parameters, vector.data.split(sizes), vector.grad.split(sizes), strict=True
    ):
        p.data, p.grad = value.view_as(p), grad.view_as(p)
    return vector


def learning_rate(step: int, *, steps: int, peak: float, schedule: str) -> float:
    """The learning rate of a step, a pure function of its number, so that resuming needs no state.

    `one-cycle`: by cosine from peak/25 to peak over the first fifth of the steps, then to 0
    (after Smith and Topin 2018).
    """
    if schedule == "constant":
        return peak
    warmup = max(1, steps // 5)
    if step < warmup:
        low, high, part = peak / 25, peak, step / warmup
    else:
        low, high, part = peak, 0.0, (step - warmup) / max(1, steps - warmup)
    return low + (high - low) * (1 - math.cos(math.pi * part)) / 2
