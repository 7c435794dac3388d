from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed import DistBackendError

from pipeline.artifacts.storage import Storage
from pipeline.errors import ResourcesMissing
from pipeline.training.gpus import explained_errors, require_memory
from tests.support.local_artifacts import write_dataset


def test_a_gpu_with_too_little_memory_names_both_sizes_and_the_setting(tmp_path: Path) -> None:
    dataset = write_dataset(Storage(str(tmp_path)))
    dataset = dataset.model_copy(update={"rows": {"train": 10**8, "val": 10**5}})
    require_memory(dataset, 1 << 30, 2 << 30)
    with pytest.raises(ResourcesMissing, match="holds 1,035 MiB .* 512 MiB free.*--train.memory"):
        require_memory(dataset, 1 << 30, 512 << 20)


def test_memory_that_runs_out_is_one_line() -> None:
    message = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB "
        "of which 1.20 GiB is free. Process 1 has 3 GiB memory in use."
    )
    with (
        pytest.raises(ResourcesMissing, match="Tried to allocate 2.00 GiB.* 1.20 GiB is free"),
        explained_errors(),
    ):
        raise torch.OutOfMemoryError(message)


def test_two_ranks_on_one_gpu_are_one_line() -> None:
    message = "NCCL error: invalid usage. Duplicate GPU detected : rank 0 and rank 1"
    with pytest.raises(ResourcesMissing, match="Two workers share a GPU"), explained_errors():
        raise DistBackendError(message)
