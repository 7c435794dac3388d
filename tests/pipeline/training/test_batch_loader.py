from __future__ import annotations

import threading
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.data.shards import read_split
from pipeline.errors import ArtifactDamaged, SettingError
from pipeline.training.batch_loader import BatchGroup, BatchLoader
from tests.support.local_artifacts import write_dataset
from tests.support.sample_data import CLASSES, HEIGHT, WIDTH

ROWS, ROWS_PER_SHARD, BATCH = 40_100, 1000, 256
SHARD_BYTES = ROWS_PER_SHARD * HEIGHT * WIDTH
WHOLE, STREAMED, CRAMPED, NONE = 1 << 30, 24 * SHARD_BYTES, 8 * SHARD_BYTES, 0
"""Bytes for all rows, for 12 lanes, for 4 lanes but not for all shards of a group, for one lane."""
STEPS = -(-ROWS // BATCH)

Stored = tuple[Storage, DatasetManifest]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    storage = Storage(str(tmp_path_factory.mktemp("batches")))
    return storage, write_dataset(storage, train=ROWS, rows_per_shard=ROWS_PER_SHARD)


def loader(stored: Stored, memory: int, **options: Any) -> BatchLoader:
    options = {
        "order": "shuffled",
        "seed": 3,
        "batch_size": BATCH,
        "device": torch.device("cpu"),
        **options,
    }
    return BatchLoader(*stored, "train", memory_bytes=memory, **options)


def hashes(images: Tensor, labels: Tensor) -> Tensor:
    """Return a number for each row, int64 (N,), another for each of the dataset."""
    weights = torch.randint(1 << 40, (HEIGHT * WIDTH,), generator=torch.Generator().manual_seed(0))
    return images.flatten(1).long() @ weights * CLASSES + labels


def in_file_order(stored: Stored) -> Tensor:
    split = read_split(*stored, "train")
    return hashes(torch.from_numpy(split.images), torch.from_numpy(split.labels))


def batches(groups: list[BatchGroup]) -> list[Tensor]:
    """Return the hashes of a rank's slice of each batch."""
    parts = [hashes(group.images, group.labels).split(group.rows) for group in groups]
    return list(chain.from_iterable(parts))


def global_batches(
    stored: Stored, memory: int, *, workers: int = 1, epoch: int = 0, step: int = 0, **options: Any
) -> list[Tensor]:
    """Return the hashes of each batch of an epoch, joined from all workers."""
    ranks, slices = [], []
    for rank in range(workers):
        worker = loader(stored, memory, rank=rank, world_size=workers, **options)
        groups = list(worker.epoch(epoch, step))
        ranks.append(batches(groups))
        slices.append([part for group in groups for part in group.slices])
    starts, rows, totals = torch.tensor(slices).view(workers, len(slices[0]), 3).unbind(2)
    assert starts.equal(rows.cumsum(0) - rows)
    assert totals.equal(rows.sum(0).expand_as(totals))
    return [torch.cat(parts) for parts in zip(*ranks, strict=True)]


def assert_same(batches: list[Tensor], expected: list[Tensor]) -> None:
    assert len(batches) == len(expected)
    assert all(map(torch.equal, batches, expected))


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "shard-reader" in thread.name]


@pytest.mark.parametrize("memory", [WHOLE, STREAMED, CRAMPED, NONE])
def test_file_order_is_the_same_batches_in_memory_and_streamed(stored: Stored, memory: int) -> None:
    expected = in_file_order(stored).split(BATCH)
    assert_same(global_batches(stored, memory, order="file"), [*expected])


@pytest.mark.parametrize("memory", [WHOLE, STREAMED, CRAMPED, NONE])
@pytest.mark.parametrize("batch_size", [BATCH, 10_000, 50_000])
@pytest.mark.parametrize("order", ["shuffled", "any"])
def test_an_epoch_has_every_row_once(
    stored: Stored, memory: int, batch_size: int, order: str
) -> None:
    epoch = global_batches(stored, memory, batch_size=batch_size, order=order)
    assert {len(batch) for batch in epoch[:-1]} <= {batch_size}
    expected, rows = in_file_order(stored), torch.cat(epoch)
    assert len(expected.unique()) == ROWS
    assert rows.sort().values.equal(expected.sort().values)
    assert order == "any" or not rows.equal(expected)


@pytest.mark.parametrize("memory", [WHOLE, STREAMED, CRAMPED])
@pytest.mark.parametrize("order", ["shuffled", "file", "any"])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_any_number_of_workers_shares_the_same_global_batches(
    stored: Stored, memory: int, order: str, workers: int
) -> None:
    shared = global_batches(stored, memory, order=order, epoch=2, workers=workers)
    alone = global_batches(stored, memory, order=order, epoch=2)
    assert_same(shared, alone)


@pytest.mark.parametrize("memory", [WHOLE, STREAMED])
def test_the_order_follows_from_the_seed_and_the_epoch(stored: Stored, memory: int) -> None:
    def order(seed: int, epoch: int) -> Tensor:
        return torch.cat(global_batches(stored, memory, seed=seed, epoch=epoch))

    first = order(3, 0)
    assert first.equal(order(3, 0))
    assert not first.equal(order(3, 1))
    assert not first.equal(order(4, 0))


@pytest.mark.parametrize("memory", [WHOLE, STREAMED, CRAMPED, NONE])
@pytest.mark.parametrize("order", ["shuffled", "file"])
@pytest.mark.parametrize("step", [1, 100, STEPS - 1, STEPS])
def test_an_epoch_starts_at_any_step(stored: Stored, memory: int, order: str, step: int) -> None:
    whole = global_batches(stored, memory, order=order)
    assert len(whole) == STEPS
    left = global_batches(stored, memory, order=order, step=step)
    assert_same(left, whole[step:])


def test_shards_before_the_first_step_are_not_read(stored: Stored) -> None:
    total = sum(file.bytes for file in stored[1].shards("train"))
    late = loader(stored, STREAMED)
    list(late.epoch(first_step=STEPS * 9 // 10))
    assert late.bytes_read < 0.4 * total


@pytest.mark.parametrize("order", ["shuffled", "any"])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_each_worker_reads_its_part_of_a_streamed_split(
    stored: Stored, order: str, workers: int
) -> None:
    total = sum(file.bytes for file in stored[1].shards("train"))
    read = []
    for rank in range(workers):
        worker = loader(stored, STREAMED, order=order, rank=rank, world_size=workers)
        list(worker.epoch())
        read.append(worker.bytes_read)
    assert sum(read) == total
    assert max(read) < 1.1 * total / workers


def test_a_worker_may_have_no_row_if_the_order_is_free(stored: Stored) -> None:
    shared = global_batches(stored, CRAMPED, order="any", workers=6)
    assert_same(shared, global_batches(stored, CRAMPED, order="any"))


def test_more_workers_than_lanes_cannot_train(stored: Stored) -> None:
    loader(stored, CRAMPED, world_size=4)
    loader(stored, CRAMPED, world_size=5, order="file")
    with pytest.raises(SettingError, match="The 41 shards .* 4 lanes, .* the 5 workers"):
        loader(stored, CRAMPED, world_size=5)


def test_a_shuffle_mixes_shards_that_are_sorted_by_class(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    dataset = write_dataset(storage, train=6000, rows_per_shard=30, by_class=True)
    half = loader((storage, dataset), 3000 * HEIGHT * WIDTH, batch_size=20)
    labels = torch.cat([group.labels for group in half.epoch()])
    whole = labels.bincount() / len(labels)
    first = labels[: 100 * 20].bincount(minlength=CLASSES) / (100 * 20)
    torch.testing.assert_close(first, whole, rtol=0, atol=0.08)
    assert all(len(batch.unique()) == CLASSES for batch in labels.split(20))


def test_no_more_shards_are_held_than_the_memory_allows(stored: Stored) -> None:
    streamed = loader(stored, STREAMED)
    epoch = streamed.epoch()
    next(epoch)
    del epoch
    largest = max(file.bytes for file in stored[1].shards("train"))
    # The first group of batches used up eight shards at most.
    assert streamed.bytes_read <= (24 + 8) * largest


@pytest.mark.parametrize("memory", [STREAMED, NONE])
def test_an_epoch_that_is_left_has_no_thread(stored: Stored, memory: int) -> None:
    epoch = loader(stored, memory).epoch()
    next(epoch)
    assert readers()
    del epoch
    assert not readers()


def test_a_damaged_shard_ends_the_epoch(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    dataset = write_dataset(storage)
    storage.write(f"datasets/{dataset.ref}/{dataset.shards('train')[1].path}", b"damaged")
    with pytest.raises(ArtifactDamaged):
        list(loader((storage, dataset), NONE).epoch())
    assert not readers()


def test_waiting_for_data_is_counted(stored: Stored) -> None:
    assert loader(stored, WHOLE).waited_s > 0
    streamed = loader(stored, STREAMED)
    assert streamed.waited_s == 0
    list(streamed.epoch())
    assert streamed.waited_s > 0


def test_pixels_that_are_always_0_are_left_out_if_the_split_is_in_memory(stored: Stored) -> None:
    images = torch.from_numpy(read_split(*stored, "train").images).flatten(1)
    kept = [p for p in range(HEIGHT * WIDTH) if images[:, p].any()]
    assert len(kept) == (HEIGHT - 1) * (WIDTH - 1)
    whole = loader(stored, WHOLE, order="file")
    assert whole.drop_zero_pixels().tolist() == kept
    left = torch.cat([group.images for group in whole.epoch()])
    torch.testing.assert_close(left, images[:, kept])
    assert len(loader(stored, STREAMED).drop_zero_pixels()) == HEIGHT * WIDTH
