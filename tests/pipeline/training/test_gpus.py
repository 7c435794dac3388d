from __future__ import annotations

import pytest

from pipeline.errors import ResourcesMissing
from pipeline.training.gpus import require_memory, require_own_gpu


def test_ranks_that_share_a_gpu_are_refused() -> None:
    require_own_gpu([("a", "GPU-0"), ("a", "GPU-1"), ("b", "GPU-0")])
    with pytest.raises(ResourcesMissing, match="Workers 0, 2 share the GPU GPU-0 of a, but each"):
        require_own_gpu([("a", "GPU-0"), ("b", "GPU-0"), ("a", "GPU-0")])


def test_a_gpu_with_too_little_memory_names_both_sizes_and_the_setting() -> None:
    require_memory(3 << 30, 3 << 30)
    with pytest.raises(ResourcesMissing, match="needs 3,072 MiB.* 2,048 MiB free.*--train.memory"):
        require_memory(3 << 30, 2 << 30)
