"""Run a function in several processes of one group, as in Ray Train's workers, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

set_forkserver_preload(["tests.conftest"])


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: object) -> list[Any]:
    """Call a module's function on each rank; return the results, tensors and plain values."""
    with TemporaryDirectory() as folder:
        start_processes(
            _run, (world_size, folder, function, arguments), world_size, start_method="forkserver"
        )
        return [torch.load(Path(folder, str(rank))) for rank in range(world_size)]


def _run(
    rank: int,
    world_size: int,
    folder: str,
    function: Callable[..., Any],
    arguments: tuple[object, ...],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size
    )
    torch.save(function(*arguments), Path(folder, str(rank)))
    dist.destroy_process_group()
