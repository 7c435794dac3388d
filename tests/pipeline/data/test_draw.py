"""The draw of splits: by pixels and seed alone, in each class, copies together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.arrays import Int64Array, UInt64Array
from pipeline.data import draw
from pipeline.data.image_hashes import hash_images
from tests.support.sources import noise

Hashes = UInt64Array


def draw_in_parts(
    hashes: Hashes, labels: Int64Array, counts: dict[str, Int64Array], seed: int, parts: int
) -> dict[str, Hashes]:
    """Draw as the tasks do: each part by itself, then merged."""
    total = sum(counts.values(), np.zeros(1, np.int64))
    mergers = dict[int, draw.Merger]()
    for rows in np.array_split(np.arange(len(hashes)), parts):
        for label, own in draw.lowest_ranks(hashes[rows], labels[rows], total, seed).items():
            mergers.setdefault(label, draw.Merger(int(total[label]))).add(own)
    return draw.split_candidates({label: own.merge() for label, own in mergers.items()}, counts)


ROWS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=60)


@pytest.fixture(autouse=True)
def _merge_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "MIN_MERGED", 1)


@given(ROWS, st.integers(0, 5), st.integers(1, 7), st.randoms(use_true_random=False))
def test_the_draw_is_the_same_for_any_order_and_number_of_tasks(
    rows: list[tuple[int, int]], seed: int, parts: int, random: Any
) -> None:
    counts = {"test": np.array([1, 2, 3]), "val": np.array([2, 0, 4])}
    drawn = []
    for number_of_parts in (1, parts):
        hashes = np.array([pixels for pixels, _ in rows], np.uint64)
        labels = np.array([label for _, label in rows], np.int64)
        drawn.append(draw_in_parts(hashes, labels, counts, seed, number_of_parts))
        random.shuffle(rows)
    for split in counts:
        np.testing.assert_array_equal(drawn[0][split], drawn[1][split])


@given(ROWS, st.integers(0, 5))
def test_every_image_is_in_one_split(rows: list[tuple[int, int]], seed: int) -> None:
    """Copies have one hash, so they are in one split too."""
    hashes = np.array([pixels for pixels, _ in rows], np.uint64)
    labels = np.array([label for _, label in rows], np.int64)
    counts = {"test": np.array([2, 2, 2]), "val": np.array([3, 3, 3])}
    drawn = draw_in_parts(hashes, labels, counts, seed, 1)
    assert not np.intersect1d(drawn["test"], drawn["val"]).size
    for split in counts:
        np.testing.assert_array_equal(drawn[split], np.unique(drawn[split]))


@given(ROWS, st.integers(0, 5), st.integers(1, 7))
def test_each_class_keeps_an_image_however_few_are_valid_or_differ(
    rows: list[tuple[int, int]], seed: int, parts: int
) -> None:
    # Each class has images of its own.
    hashes = np.array([100 * label + pixels for pixels, label in rows], np.uint64)
    labels = np.array([label for _, label in rows], np.int64)
    counts = {"test": np.array([9, 1, 2]), "val": np.array([3, 5, 0])}
    drawn = draw_in_parts(hashes, labels, counts, seed, parts)
    left = ~np.isin(hashes, np.concatenate(list(drawn.values())))
    assert set(labels[left]) == set(labels)


@pytest.mark.parametrize(("count", "number"), [(0, 0), (1, 1), (19, 19), (20, 19), (99, 19)])
def test_so_many_images_are_drawn_as_asked_for_but_one(count: int, number: int) -> None:
    hashes, labels = np.arange(20, dtype=np.uint64), np.zeros(20, np.int64)
    assert len(draw_in_parts(hashes, labels, {"val": np.array([count])}, 0, 3)["val"]) == number


@given(st.lists(st.integers(0, 500), min_size=2, max_size=40), st.data())
def test_shares_leave_each_class_one_and_take_one_of_three(
    counts: list[int], data: st.DataObject
) -> None:
    rows = np.array(counts, np.int64)
    total = data.draw(st.integers(0, max(0, sum(counts) - 1)))
    shares = draw.shares(rows, total)
    assert (shares >= 0).all()
    assert ((shares < rows) | (rows == 0)).all()
    assert (shares[rows >= 3] >= 1).all()
    # Classes are drawn from in proportion, up to one image and the two bounds.
    exact = rows * (total / max(1, sum(counts)))
    assert ((np.abs(shares - exact) <= 1) | (shares == 1) | (shares == rows - 1)).all()


def test_equal_classes_give_equal_shares() -> None:
    assert set(draw.shares(np.full(9, 20), 30)) == {3, 4}
    np.testing.assert_array_equal(draw.shares(np.full(10, 6000), 10_000), np.full(10, 1000))


def test_other_seeds_draw_other_images_and_no_pattern_of_pixels() -> None:
    hashes = hash_images(noise(6000, shape=(4, 4)))
    labels = np.zeros(6000, np.int64)
    counts = {"val": np.array([1000])}
    drawn = [draw_in_parts(hashes, labels, counts, seed, 3)["val"] for seed in range(3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        # A sixth of a sixth of 6000 is 167.
        assert 100 < len(np.intersect1d(drawn[one], drawn[other])) < 240


@pytest.mark.parametrize(("rows", "count"), [(2, 1), (11, 1), (60, 10), (10**6, 50_000)])
def test_a_sixth_is_drawn_by_default(rows: int, count: int) -> None:
    assert draw.default_count(rows) == count
