from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.storage import Storage
from pipeline.config import Data, Preprocess
from pipeline.data.shards import iter_shards, read_split
from pipeline.stages.preprocess import preprocess
from pipeline.training.batch_loader import BatchLoader
from tests.conftest import Artifacts
from tests.support.sample_data import HEIGHT, WIDTH

ROWS, ROWS_PER_SHARD, BATCH = 500, 70, 47
SHARD_BYTES = ROWS_PER_SHARD * HEIGHT * WIDTH
WHOLE, STREAMED = 1 << 30, 4 * SHARD_BYTES
"""Bytes that hold all rows, and bytes that hold windows of two shards."""


@pytest.fixture(scope="module")
def stored(
    artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Storage, DatasetManifest]:
    root = str(tmp_path_factory.mktemp("batches"))
    data = Data(name="bars", source=artifacts.data.source, rows_per_shard=ROWS_PER_SHARD)
    return Storage(root), preprocess(Preprocess(root=root, data=data))


def batches(stored: tuple[Storage, DatasetManifest], memory: int, **options: Any) -> BatchLoader:
    options = {"batch_size": BATCH, "device": torch.device("cpu"), **options}
    return BatchLoader(*stored, "train", memory_bytes=memory, **options)


def cut(images: Tensor, sizes: list[int]) -> list[Tensor]:
    return [batch.flatten(1) for batch in images.split(sizes)]


def global_batches(
    stored: tuple[Storage, DatasetManifest],
    memory: int,
    *,
    workers: int = 1,
    epoch: int = 0,
    **options: Any,
) -> list[Tensor]:
    """Return the pixels of each batch of an epoch, joined from all workers."""
    ranks = []
    for rank in range(workers):
        slices = list[Tensor]()
        for group in batches(stored, memory, rank=rank, world_size=workers, **options).epoch(epoch):
            assert len(group.images) == len(group.labels) == sum(group.rows)
            slices += cut(group.images, group.rows)
        ranks.append(slices)
    return [torch.cat(slices) for slices in zip(*ranks, strict=True)]


def rows(images: Tensor) -> list[bytes]:
    return [bytes(image.numpy()) for image in images.flatten(1)]


@pytest.mark.parametrize("memory", [WHOLE, STREAMED, 1])
def test_file_order_is_the_same_batches_in_memory_and_streamed(
    stored: tuple[Storage, DatasetManifest], memory: int
) -> None:
    images = torch.from_numpy(read_split(*stored, "train").images)
    expected = cut(images, [BATCH] * (ROWS // BATCH) + [ROWS % BATCH])
    torch.testing.assert_close(global_batches(stored, memory), expected)


@pytest.mark.parametrize("memory", [WHOLE, STREAMED, 1])
@pytest.mark.parametrize("batch_size", [1, BATCH, 128, 1000])
def test_an_epoch_has_every_row_once(
    stored: tuple[Storage, DatasetManifest], memory: int, batch_size: int
) -> None:
    shuffled = global_batches(stored, memory, seed=3, batch_size=batch_size)
    assert {len(batch) for batch in shuffled[:-1]} <= {batch_size}
    expected = rows(torch.from_numpy(read_split(*stored, "train").images))
    assert sorted(rows(torch.cat(shuffled))) == sorted(expected)
    assert rows(torch.cat(shuffled)) != expected


@pytest.mark.parametrize("memory", [WHOLE, STREAMED])
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("workers", [2, 3, 64])
def test_any_number_of_workers_shares_the_same_global_batches(
    stored: tuple[Storage, DatasetManifest], memory: int, seed: int | None, workers: int
) -> None:
    shared = global_batches(stored, memory, seed=seed, epoch=2, workers=workers)
    alone = global_batches(stored, memory, seed=seed, epoch=2)
    torch.testing.assert_close(shared, alone)


@pytest.mark.parametrize("memory", [WHOLE, STREAMED])
def test_the_order_follows_from_the_seed_and_the_epoch(
    stored: tuple[Storage, DatasetManifest], memory: int
) -> None:
    def order(seed: int, epoch: int) -> bytes:
        return b"".join(rows(torch.cat(global_batches(stored, memory, seed=seed, epoch=epoch))))

    assert order(3, 0) == order(3, 0)
    assert len({order(3, 0), order(3, 1), order(4, 0)}) == 3


def test_the_windows_of_a_streamed_shuffle_double_up_to_half_of_the_memory(
    stored: tuple[Storage, DatasetManifest],
) -> None:
    shards = [rows(torch.from_numpy(shard.images)) for shard in iter_shards(*stored, "train")]
    shard_of = {row: number for number, shard in enumerate(shards) for row in shard}
    order = rows(torch.cat(global_batches(stored, STREAMED, seed=3)))
    numbers = [shard_of[row] for row in order]
    first = len(shards[numbers[0]])
    assert len(set(numbers[:first])) == 1
    second, third = list(dict.fromkeys(numbers[first:]))[:2]
    window = numbers[first : first + len(shards[second]) + len(shards[third])]
    assert set(window) == {second, third}
    assert window != sorted(window)
    assert window != sorted(window, reverse=True)


def test_waiting_for_data_is_counted(stored: tuple[Storage, DatasetManifest]) -> None:
    assert batches(stored, WHOLE).waited_s > 0
    streamed = batches(stored, STREAMED)
    assert streamed.waited_s == 0
    list(streamed.epoch())
    assert streamed.waited_s > 0


def test_pixels_that_are_always_0_are_left_out_if_the_split_is_in_memory(
    stored: tuple[Storage, DatasetManifest],
) -> None:
    images = torch.from_numpy(read_split(*stored, "train").images).flatten(1)
    kept = [p for p in range(HEIGHT * WIDTH) if images[:, p].any()]
    assert len(kept) == (HEIGHT - 1) * (WIDTH - 1)
    loader = batches(stored, WHOLE)
    assert loader.drop_zero_pixels().tolist() == kept
    left = torch.cat([group.images for group in loader.epoch()])
    torch.testing.assert_close(left, images[:, kept])
    assert len(batches(stored, STREAMED).drop_zero_pixels()) == HEIGHT * WIDTH
