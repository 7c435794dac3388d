from __future__ import annotations

import torch
from torch import Tensor

from pipeline.training.augment import IMAGES_PER_FIELD, Augment
from pipeline.training.batch_loader import RankSlice

HEIGHT, WIDTH, BATCH = 20, 24, 3 * IMAGES_PER_FIELD + 7
CPU = torch.device("cpu")


def blobs(count: int) -> Tensor:
    """Return the same blob, `count` times."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    image = 255 * torch.exp(-(((y - 9) / 4) ** 2) - ((x - 13) / 3) ** 2)
    return image.to(torch.uint8).expand(count, -1, -1)


def augmented(*, strength: float = 1.0, seed: int = 0, step: int = 0, workers: int = 1) -> Tensor:
    """Augment a batch, and return it joined from all workers."""
    slices = []
    for rank in range(workers):
        augment = Augment(HEIGHT, WIDTH, strength, seed, CPU)
        start, stop = (BATCH * r // workers for r in (rank, rank + 1))
        rank_slice = RankSlice(start, stop - start, BATCH)
        slices.append(augment(blobs(stop - start), rank_slice, augment.draw(step, BATCH)))
    return torch.cat(slices)


def test_augmentation_moves_ink_and_keeps_the_range_of_pixels() -> None:
    before, after = blobs(BATCH).float(), augmented()
    assert after.shape == before.shape
    assert after.min() >= 0
    assert after.max() <= 255
    assert ((after - before).abs().amax((1, 2)) > 20).all()
    torch.testing.assert_close(after.mean((1, 2)), before.mean((1, 2)), rtol=0.4, atol=0)


def test_augmentation_vanishes_with_its_strength() -> None:
    torch.testing.assert_close(augmented(strength=1e-6), blobs(BATCH).float(), rtol=0, atol=0.01)


def test_neighbours_share_a_field_and_groups_of_them_differ() -> None:
    groups = augmented().split(IMAGES_PER_FIELD)
    for group in groups:
        torch.testing.assert_close(group, group[:1].expand_as(group))
    assert len({bytes(group[0].numpy()) for group in groups}) == len(groups)


def test_every_step_and_seed_has_its_own_fields() -> None:
    first = augmented()
    torch.testing.assert_close(augmented(), first, rtol=0, atol=0)
    for other in (augmented(step=1), augmented(seed=1)):
        assert not torch.allclose(other, first)


def test_any_number_of_workers_augments_alike() -> None:
    for workers in (2, 3, BATCH + 1):
        torch.testing.assert_close(augmented(workers=workers), augmented())
