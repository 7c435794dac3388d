"""Write the metrics of each epoch and the checkpoints, and report them to Ray Train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from time import monotonic
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from torch import Tensor

from pipeline.training import checkpoints
from pipeline.training.checkpoints import TrainState
from pipeline.training.history import Layout, extend
from pipeline.training.run_state import TrainJob, read_metrics, write_metrics
from pipeline.training.steps import TrainStep

CHECK_S = 1.0
"""Seconds between two looks at the clock and for notices of preemption. Each is a message to all
workers."""


class Recorder:
    """Writes the metrics and checkpoints of a run, on rank 0, and reports them to Ray Train.

    All workers call each method at once.
    """

    def __init__(
        self, job: TrainJob, step: TrainStep, layout: Layout, device: torch.device
    ) -> None:
        self._job, self._step, self._layout, self._device = job, step, layout, device
        context = ray.train.get_context()
        self._rank, self._world_size = context.get_world_rank(), context.get_world_size()
        self.metrics = list[dict[str, float]]()
        self._history = list[dict[str, Any]]()
        self._saved_at = self._looked_at = monotonic()
        self._steps_since_save = self._steps_since_look = self._steps_to_look = 0
        self._preemption_seen = False

    def resume(self) -> tuple[int, int, Tensor]:
        """Load the newest checkpoint that is intact into the step, and the metrics up to it.

        Return the number of finished epochs, that of steps taken in the next, and this worker's
        sums in these. Rank 0 chooses the checkpoint for all, because a shared storage may show
        files to others later.
        """
        state: TrainState | None = None
        if self._rank == 0:
            self.metrics = read_metrics(self._job.storage, self._job.folder)
            state = checkpoints.load_latest(
                self._job.storage, self._job.folder, epochs=len(self.metrics)
            )
            del self.metrics[state.epoch if state else 0 :]
        if self._world_size > 1:
            states = [state]
            dist.broadcast_object_list(states, device=self._device)
            state = states[0]
        epoch, step, sums = 0, 0, torch.zeros(2, dtype=torch.float64)
        if state:
            self._step.load(state.model, state.optimizer)
            epoch, step, sums = state.epoch, state.step, self._own_sums(state.sums)
        self._history = extend(list(state.history) if state else [], epoch, step, self._layout)
        return epoch, step, sums.to(self._device)

    def _own_sums(self, all_sums: Sequence[Sequence[float]]) -> Tensor:
        """Return this worker's sums of those in a checkpoint."""
        sums = torch.tensor(all_sums, dtype=torch.float64).view(-1, 2)
        if len(sums) == self._world_size:
            return sums[self._rank]
        # Other workers wrote the checkpoint: rank 0 takes the sums of all.
        return sums.sum(0) if self._rank == 0 else torch.zeros(2, dtype=torch.float64)

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Write the metrics of an epoch that ended."""
        self.metrics.append(metrics)
        if self._rank == 0:
            write_metrics(self._job.storage, self._job.folder, self.metrics)

    def is_checkpoint_due(self, steps: int) -> bool:
        """Return whether to write a checkpoint, `steps` steps after the last call.

        It is due after the steps or the seconds of the settings, and once if a node is about to be
        taken away. The answer is the same on all workers.
        """
        training = self._job.training
        self._steps_since_save += steps
        self._steps_since_look += steps
        by_steps = training.checkpoint_steps
        is_due = by_steps is not None and self._steps_since_save >= by_steps
        if self._steps_since_look >= self._steps_to_look:
            is_due |= self._look()
        return is_due

    def _look(self) -> bool:
        """Return whether the clock, or a notice of preemption, asks for a checkpoint."""
        now = monotonic()
        steps_a_second = self._steps_since_look / max(now - self._looked_at, 1e-3)
        decision = torch.tensor(
            [now - self._saved_at >= self._job.training.checkpoint_seconds, steps_a_second],
            dtype=torch.float64,
            device=self._device,
        )
        if self._world_size > 1:
            dist.broadcast(decision, 0)
        is_due, steps_a_second = decision.tolist()
        self._looked_at, self._steps_since_look = now, 0
        self._steps_to_look = int(steps_a_second * CHECK_S)
        if not self._preemption_seen and ray.train.get_preemption_info() is not None:
            self._preemption_seen = True
            return True
        return bool(is_due)

    def save(self, epoch: int, step: int, sums: Tensor) -> dict[str, Any]:
        """Write a checkpoint and report it; return its entry on rank 0."""
        all_sums = [sums.tolist()]
        if self._world_size > 1:
            all_sums *= self._world_size
            dist.all_gather_object(all_sums, sums.tolist())
        model, optimizer = self._step.model_state(), self._step.optimizer_state()
        sums_of_steps = all_sums if step else []
        state = TrainState(epoch, model, optimizer, step, sums_of_steps, self._history)
        entry, checkpoint = dict[str, Any](), None
        if self._rank == 0:
            storage, folder = self._job.storage, self._job.folder
            written = checkpoints.save(storage, folder, state)
            directory = written.path.rpartition("/")[0]
            checkpoint = Checkpoint(storage.uri(f"{folder}/{directory}"))
            entry = asdict(written)
        ray.train.report(
            {"epoch": epoch, "step": step, **(self.metrics[-1] if self.metrics else {})},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )
        self._saved_at, self._steps_since_save = monotonic(), 0
        return {"checkpoint": entry, "metrics": self.metrics, "history": self._history}
