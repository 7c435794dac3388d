"""Run a function in several processes of one group, in the local mode of Ray Train."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import set_forkserver_preload
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

set_forkserver_preload(["tests.conftest", "ray.train.torch"])


def on_ranks(
    world_size: int, function: Callable[..., Any], *arguments: object, device: str = "cpu"
) -> list[Any]:
    """Call a module's function on each rank; return the results, tensors and plain values."""
    with _reserved_port() as port, TemporaryDirectory() as folder:
        start_processes(
            _run_and_save,
            (world_size, port, folder, device, function, arguments),
            world_size,
            start_method="forkserver",
        )
        return [torch.load(Path(folder, str(rank))) for rank in range(world_size)]


def on_one_rank(function: Callable[..., Any], *arguments: object, device: str = "cpu") -> Any:
    """Call a function as the only rank, in this process; return its result."""
    with _reserved_port() as port:
        return _run(0, 1, port, device, partial(function, *arguments))


@contextmanager
def _reserved_port() -> Iterator[int]:
    """Yield a port that the group can bind, and that no one else is given meanwhile."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def _run_and_save(
    rank: int,
    world_size: int,
    port: int,
    folder: str,
    device: str,
    function: Callable[..., Any],
    arguments: tuple[object, ...],
) -> None:
    result = _run(rank, world_size, port, device, partial(function, *arguments))
    torch.save(result, Path(folder, str(rank)))


def _run(rank: int, world_size: int, port: int, device: str, function: Callable[[], Any]) -> Any:
    if device == "cpu":
        # The local mode takes a GPU if there is one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    torch.set_num_threads(1)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    # As torchrun sets them.
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    result: Any = TorchTrainer(function, scaling_config=ScalingConfig(num_workers=0)).fit()
    return result.return_value
