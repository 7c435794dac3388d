"""A step as PyTorch's guides have it: DistributedDataParallel, autograd and torch.optim."""

from __future__ import annotations

from copy import deepcopy

import ray.train
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ray.train.torch import prepare_model
from torch import Tensor, nn

from pipeline.contract import ImageSpec
from pipeline.recipes import Training
from pipeline.training.augment import Augment
from pipeline.training.batch_loader import MODEL, BatchGroup, stream_seed
from pipeline.training.schedule import Rate
from pipeline.training.steps import GroupResult, OptimizerState


class TextbookStep:
    """Trains any model, on CPUs and GPUs."""

    def __init__(
        self,
        training: Training,
        image: ImageSpec,
        model: nn.Module,
        rate: Rate,
        augment: Augment | None,
        device: torch.device,
    ) -> None:
        self._model = model.to(device)
        # DistributedDataParallel, if there are several workers: `backward` then averages the
        # gradients of all.
        self._parallel_model = prepare_model(model, move_to_device=False)
        self._optimizer = create_optimizer(training, model)
        context = ray.train.get_context()
        self._rank, self._world_size = context.get_world_rank(), context.get_world_size()
        self.is_parallel = self._world_size > 1
        self._rate, self._augment = rate, augment
        self._seed, self._device = training.seed, device
        if self.is_parallel:
            self._settle_buckets(image)
        self._precision = torch.autocast(
            device.type, torch.bfloat16, enabled=training.precision == "bf16"
        )

    def train(self, group: BatchGroup, first_step: int) -> GroupResult:
        self._parallel_model.train()
        # For layers such as dropout. Each rank draws its own, from the step on.
        torch.manual_seed(stream_seed(self._seed, first_step, MODEL + self._rank))
        losses = torch.zeros(len(group.rows), dtype=torch.float64, device=self._device)
        correct = torch.zeros((), dtype=torch.float64, device=self._device)
        batches = zip(group.images.split(group.rows), group.labels.split(group.rows), strict=True)
        for index, (images, labels) in enumerate(batches):
            rank_slice, number = group.slices[index], first_step + index
            if self._augment:
                noise = self._augment.draw(number, rank_slice.total)
                images = self._augment(images, rank_slice, noise)
            weight = self._world_size / rank_slice.total
            if rank_slice.rows == 0:
                # Another worker has the rows of this small batch, but all must take part in its
                # backward pass.
                images, labels = (part.new_zeros(2, *part.shape[1:]) for part in (images, labels))
                weight = 0.0
            with self._precision:
                logits = self._parallel_model(images)
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")

            for parameters in self._optimizer.param_groups:
                parameters["lr"] = self._rate(number)
            self._optimizer.zero_grad()
            # The average over workers is then the gradient of the mean over the global batch, even
            # if the workers' numbers of rows differ.
            (loss * weight).backward()
            self._optimizer.step()

            if weight:
                losses[index] = loss.detach()
                correct += (logits.detach().argmax(1) == labels).sum()
        return GroupResult(losses, correct)

    def _settle_buckets(self, image: ImageSpec) -> None:
        """Run a backward pass whose gradients are not used.

        DistributedDataParallel puts gradients into other buckets after the first one, and the
        order of a sum decides its bits. A run that is resumed must have the order of one that is
        not.
        """
        state = deepcopy(self._model.state_dict())
        images = torch.zeros(2, *image.shape, dtype=torch.uint8, device=self._device)
        self._parallel_model(images).sum().backward()
        self._model.load_state_dict(state)

    @torch.no_grad()
    def evaluate(self, group: BatchGroup) -> Tensor:
        self._model.eval()
        self._share_buffers()
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        batches = zip(group.images.split(group.rows), group.labels.split(group.rows), strict=True)
        for images, labels in batches:
            if len(labels):
                with self._precision:
                    logits = self._model(images).float()
                sums[0] += F.cross_entropy(logits, labels, reduction="sum")
                sums[1] += (logits.argmax(1) == labels).sum()
        return sums

    def _share_buffers(self) -> None:
        """Give all ranks the running averages of rank 0, which are saved."""
        if self.is_parallel:
            for buffer in self._model.buffers():
                dist.broadcast(buffer, 0)

    @torch.no_grad()
    def is_finite(self) -> bool:
        sums = [p.sum(dtype=torch.float64) for p in self._model.parameters()]
        return bool(torch.stack(sums).isfinite().all())

    def model_state(self) -> dict[str, Tensor]:
        return self._model.state_dict()

    def optimizer_state(self) -> OptimizerState:
        state: OptimizerState = self._optimizer.state_dict()["state"]
        return state

    def load(self, model: dict[str, Tensor], optimizer: OptimizerState) -> None:
        self._model.load_state_dict(model)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": optimizer})


def create_optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of these settings; its learning rate is set before each step."""
    if training.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=training.learning_rate)
    return torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        fused=True,
    )
