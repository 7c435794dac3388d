"""The fast step on GPUs: all steps of a group of batches are one CUDA graph, for any model.

A GPU computes a step of a small network sooner than Python can start its kernels. A graph starts
them all at once. On a CPU the same code runs without graphs, so tests there cover it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray.train
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.recipes import Training
from pipeline.training.augment import Augment, Noise
from pipeline.training.batch_loader import MODEL, BatchGroup, BatchLoader, RankSlice, stream_seed
from pipeline.training.requirements import GraphRefused
from pipeline.training.schedule import Rate
from pipeline.training.steps import GroupResult, OptimizerState
from pipeline.training.textbook_step import TextbookStep

MAX_GRAPHS = 8
"""Graphs of one run. Each holds the activations of a group."""


class Inputs(NamedTuple):
    """All that the steps of a group read, on the device."""

    images: Tensor
    """uint8 (rows, height, width)."""
    labels: Tensor
    """int64 (rows,)."""
    rates: Tensor
    """The learning rate of each step, float32 (steps,)."""
    affine: Tensor
    elastic: Tensor
    """`Noise` of each step, if images are augmented."""


class GraphStep(TextbookStep):
    """Trains any model on GPUs, with the arithmetic of the textbook's step."""

    def __init__(
        self,
        training: Training,
        model: nn.Module,
        loader: BatchLoader,
        rate: Rate,
        augment: Augment | None,
        device: torch.device,
    ) -> None:
        self._device = device
        context = ray.train.get_context()
        self._rank = context.get_world_rank()
        self.is_parallel = context.get_world_size() > 1
        # Ranks must agree whether an all-reduce is in a graph, but the slices of a streamed batch
        # have other sizes in each rank. gloo's all-reduce cannot be in one.
        allows_graph = dist.get_backend() == "nccl" and not loader.is_streamed
        self._captures = device.type == "cuda" and (allows_graph or not self.is_parallel)
        if device.type == "cuda":
            # A graph cannot be captured on the default stream. All work of this thread moves.
            torch.cuda.synchronize(device)
            torch.cuda.set_stream(torch.cuda.Stream(device))
        self._model = model.to(device)
        trained = [p for p in model.parameters() if p.requires_grad]
        # All gradients are views of one vector, which one all-reduce sums.
        self._gradient = torch.zeros(sum(p.numel() for p in trained), device=device)
        views = self._gradient.split([p.numel() for p in trained])
        for p, view in zip(trained, views, strict=True):
            p.grad = view.view_as(p)
        self._rate_now = torch.zeros((), device=device)
        self._optimizer = create_graph_optimizer(training, model, self._rate_now)
        if self.is_parallel:
            for p in model.parameters():
                dist.broadcast(p.detach(), 0)
        self._rate, self._augment, self._seed = rate, augment, training.seed
        self._precision = torch.autocast(
            device.type, torch.bfloat16, training.precision == "bf16", cache_enabled=False
        )
        self._seen = set[tuple[RankSlice, ...]]()
        self._graphs = dict[tuple[RankSlice, ...], _Graph]()
        self.replays = 0

    def train(self, group: BatchGroup, first_step: int) -> GroupResult:
        self._model.train()
        self._share_buffers()
        torch.manual_seed(stream_seed(self._seed, first_step, MODEL + self._rank))
        inputs, slices = self._inputs(group, first_step), tuple(group.slices)
        graph = self._graphs.get(slices)
        # The first group of a form runs without a graph, which makes the libraries ready.
        if not graph and self._captures and slices in self._seen:
            graph = self._capture(inputs, slices)
        if self._captures:
            self._seen.add(slices)
        if not graph:
            return self._take_steps(inputs, slices)
        self.replays += 1
        return graph.replay(inputs)

    def _inputs(self, group: BatchGroup, first_step: int) -> Inputs:
        steps = range(first_step, first_step + len(group.slices))
        rates = torch.tensor([self._rate(step) for step in steps]).to(self._device)
        nothing = torch.empty(0, device=self._device)
        if not self._augment:
            return Inputs(group.images, group.labels, rates, nothing, nothing)
        noises = [
            self._augment.draw(step, rank_slice.total)
            for step, rank_slice in zip(steps, group.slices, strict=True)
        ]
        affine, elastic = map(torch.cat, zip(*noises, strict=True))
        return Inputs(group.images, group.labels, rates, affine, elastic)

    def load(self, model: dict[str, Tensor], optimizer: OptimizerState) -> None:
        super().load(model, optimizer)
        for group in self._optimizer.param_groups:
            # The optimizer copied it, but the graph writes to the tensor.
            group["lr"] = self._rate_now

    def _capture(self, inputs: Inputs, slices: tuple[RankSlice, ...]) -> _Graph | None:
        """Return the graph of a group's steps, or None if there are too many graphs.

        Raise GraphRefused if the model does not allow one. The process cannot go on then, because
        CUDA may be in the middle of a capture.
        """
        if len(self._graphs) == MAX_GRAPHS:
            return None
        try:
            self._graphs[slices] = _Graph(lambda own: self._take_steps(own, slices), inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise GraphRefused(str(error).partition("\n")[0]) from error
        return self._graphs[slices]

    def _take_steps(self, inputs: Inputs, slices: Sequence[RankSlice]) -> GroupResult:
        rows = [rank_slice.rows for rank_slice in slices]
        losses = torch.zeros(len(slices), dtype=torch.float64, device=self._device)
        correct = torch.zeros((), dtype=torch.float64, device=self._device)
        batches = zip(inputs.images.split(rows), inputs.labels.split(rows), slices, strict=True)
        first_field = 0
        for index, (images, labels, rank_slice) in enumerate(batches):
            if self._augment:
                fields = slice(first_field, first_field + self._augment.fields(rank_slice.total))
                noise = Noise(inputs.affine[fields], inputs.elastic[fields])
                images = self._augment(images, rank_slice, noise)
                first_field = fields.stop
            self._gradient.zero_()
            if rank_slice.rows:
                with self._precision:
                    logits = self._model(images)
                loss = F.cross_entropy(logits.float(), labels, reduction="sum")
                (loss / rank_slice.total).backward()
                losses[index] = loss.detach()
                correct += (logits.detach().argmax(1) == labels).sum()
            if self.is_parallel:
                dist.all_reduce(self._gradient)
            self._rate_now.copy_(inputs.rates[index])
            self._optimizer.step()
        return GroupResult(losses, correct)


class _Graph:
    """A function of a group's inputs as a CUDA graph, with memory of its own."""

    def __init__(self, function: Callable[[Inputs], GroupResult], inputs: Inputs) -> None:
        self._inputs = Inputs(*(tensor.clone() for tensor in inputs))
        self._graph = torch.cuda.CUDAGraph()
        # NCCL's own threads may call CUDA meanwhile.
        with torch.cuda.graph(
            self._graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            self._result = function(self._inputs)

    def replay(self, inputs: Inputs) -> GroupResult:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return GroupResult(*(tensor.clone() for tensor in self._result))


def create_graph_optimizer(
    training: Training, model: nn.Module, rate: Tensor
) -> torch.optim.Optimizer:
    """Return the optimizer, whose learning rate is a tensor, so that a graph may read it."""
    options: dict[str, Any] = {"lr": rate, "fused": True}
    if training.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), **options)
    return torch.optim.AdamW(
        model.parameters(),
        weight_decay=training.weight_decay,
        capturable=rate.is_cuda,
        **options,
    )
