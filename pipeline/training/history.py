"""The history of a run: its workers, device and libraries, and from which step on."""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from pipeline.recipes import Training
from pipeline.training.requirements import step_name


class Layout(TypedDict):
    """The bits of a run depend on this, beside its settings."""

    num_workers: int
    cpus_per_worker: int
    device: str
    """The name of the GPU, or the instructions that torch uses of the CPU."""
    step: str
    torch: str


def layout(training: Training, world_size: int, device: torch.device) -> Layout:
    """Return what trains now."""
    name = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return Layout(
        num_workers=world_size,
        cpus_per_worker=training.cpus_per_worker,
        device=f"{device.type}: {name}",
        step=step_name(training, device.type),
        torch=str(torch.__version__),
    )


def extend(
    history: list[dict[str, Any]], epoch: int, step: int, now: Layout
) -> list[dict[str, Any]]:
    """Return the history with an entry for what trains from this step on, if it is another."""
    if history and {**history[-1], **now} == history[-1]:
        return history
    return [*history, {"from_epoch": epoch, "from_step": step, **now}]
