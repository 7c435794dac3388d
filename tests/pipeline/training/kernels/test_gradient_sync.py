from __future__ import annotations

import os
import platform
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.training.kernels import ring, shared_memory
from pipeline.training.kernels.gradient_sync import create_gradient_sync
from tests.support.ranks import on_ranks

STEPS, SIZE = 200, 1001


def gradient(rank: int, step: int) -> torch.Tensor:
    return torch.sin(torch.arange(SIZE) * (rank + 1.0) + step)


def steps(folder: str) -> dict[str, Any]:
    """Take many steps; return the parameters after each, and whether memory was shared."""
    shared_memory.FOLDER = folder
    before = set(os.listdir("/dev/shm"))
    sync = create_gradient_sync(torch.ones(SIZE))
    own, after = sync.parameters[sync.own_slice], []
    for step in range(STEPS):
        sync.gradient.copy_(gradient(dist.get_rank(), step))
        sync.reduce()
        own.sub_(sync.reduced)
        sync.all_gather()
        after.append(sync.parameters.clone())
    return {
        "after": torch.stack(after),
        "joined": sync.join(own),
        "kind": type(sync).__name__,
        "left": len(set(os.listdir("/dev/shm")) - before),
    }


@pytest.mark.parametrize("folder", ["/dev/shm", "/nowhere"])
def test_after_each_step_all_workers_have_the_same_bits(folder: str) -> None:
    ranks = on_ranks(3, steps, folder)
    sums = torch.stack(
        [gradient(0, step) + gradient(1, step) + gradient(2, step) for step in range(STEPS)]
    )
    for rank in ranks:
        is_shared = folder == "/dev/shm" and platform.machine() == "x86_64"
        assert rank["kind"] == ("SharedMemorySync" if is_shared else "RingSync")
        assert rank["left"] == 0
        torch.testing.assert_close(rank["after"], ranks[0]["after"], rtol=0, atol=0)
        torch.testing.assert_close(rank["joined"], rank["after"][-1], rtol=0, atol=0)
        torch.testing.assert_close(rank["after"], 1 - sums.cumsum(0), rtol=1e-4, atol=1e-4)


def test_a_single_worker_keeps_its_own_gradient() -> None:
    (alone,) = on_ranks(1, steps, "/dev/shm")
    assert alone["kind"] == "GradientSync"
    torch.testing.assert_close(alone["after"][0], 1 - gradient(0, 0))


def test_a_connection_of_a_stranger_is_not_taken_into_the_ring() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with (
            socket.create_connection(address) as stranger,
            socket.create_connection(address) as own,
        ):
            stranger.sendall(bytes(32))
            own.sendall(b"k" * 32)
            with ring._accept(server, b"k" * 32) as accepted:
                assert accepted.getpeername() == own.getsockname()
