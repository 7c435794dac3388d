from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.data.shards import SAMPLE_BLOCKS, iter_rows, read_split, sample
from tests.support.local_artifacts import write_dataset

Stored = tuple[Storage, DatasetManifest]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    storage = Storage(str(tmp_path))
    return storage, write_dataset(storage, test=1000)


def sampled_ids(stored: Stored, count: int) -> list[int]:
    return [int(i) for shard in sample(*stored, "test", count) for i in shard.ids]


def test_rows_are_read_from_their_own_shards_only(stored: Stored) -> None:
    storage, dataset = stored
    split = read_split(*stored, "test")
    positions = np.array([81, 83, 119, 400])
    for number, entry in enumerate(dataset.shards("test")):
        if number not in (2, 10):
            storage.delete(f"datasets/{dataset.ref}/{entry.path}")
    shards = list(iter_rows(storage, dataset, "test", positions))
    assert len(shards) == 2
    np.testing.assert_array_equal(np.concatenate([s.ids for s in shards]), positions)
    np.testing.assert_array_equal(
        np.concatenate([s.images for s in shards]), split.images[positions]
    )
    np.testing.assert_array_equal(
        np.concatenate([s.labels for s in shards]), split.labels[positions]
    )


@pytest.mark.parametrize("count", [1000, 2000])
def test_a_sample_of_a_small_split_is_the_split(stored: Stored, count: int) -> None:
    assert sampled_ids(stored, count) == list(range(1000))


@pytest.mark.parametrize("count", [SAMPLE_BLOCKS, 100, 980])
def test_a_sample_is_spread_over_the_split(stored: Stored, count: int) -> None:
    ids = sampled_ids(stored, count)
    assert len(set(ids)) == count
    assert ids == sorted(ids)
    for tenth in range(10):
        own = [i for i in ids if i // 100 == tenth]
        assert len(own) == pytest.approx(count / 10, abs=10)
