from __future__ import annotations

import os
import platform
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline import allreduce
from pipeline.allreduce import AllReduce
from tests.ranks import on_ranks

SUMS, SIZE = 200, 1001


def sums(folder: str) -> dict[str, Any]:
    """Many sums, one right after the other, and whether they went through shared memory."""
    allreduce.SHARED_FOLDER = folder
    before = set(os.listdir("/dev/shm"))
    vector, results = torch.empty(SIZE), []
    all_reduce = AllReduce(vector)
    for number in range(SUMS):
        vector.copy_(torch.sin(torch.arange(SIZE) * (dist.get_rank() + 1.0) + number))
        all_reduce(vector)
        results.append(vector.clone())
    dist.barrier()
    return {
        "sums": torch.stack(results),
        "shared": all_reduce._memory is not None,
        "left": len(set(os.listdir("/dev/shm")) - before),
    }


@pytest.mark.parametrize("folder", ["/dev/shm", "/nowhere"])
def test_all_workers_get_the_same_bits_of_the_sum(folder: str) -> None:
    ranks = on_ranks(3, sums, folder)
    angles = torch.arange(SIZE) + torch.zeros(SUMS, 1)
    shift = torch.arange(SUMS)[:, None]
    expected = sum(torch.sin(angles * (rank + 1.0) + shift) for rank in range(3))
    for rank in ranks:
        assert rank["shared"] is (folder == "/dev/shm" and platform.machine() == "x86_64")
        assert rank["left"] == 0
        torch.testing.assert_close(rank["sums"], ranks[0]["sums"], rtol=0, atol=0)
        torch.testing.assert_close(rank["sums"], expected)


def test_a_worker_alone_keeps_its_own() -> None:
    (alone,) = on_ranks(1, sums, "/dev/shm")
    assert not alone["shared"]
    torch.testing.assert_close(alone["sums"][0], torch.sin(torch.arange(SIZE) * 1.0))
