"""The draw of splits that a source does not have, from its training images.

Each image has a rank that follows from its pixels and the seed alone. In each class, the images of
lowest rank are drawn. So the draw is the same for any order of files and any number of workers, and
copies of an image are in one split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pipeline.arrays import Int64Array, UInt64Array

DEFAULT_SHARE = 6
"""By default, a sixth of the images is drawn for a split."""

MAX_DEFAULT = 50_000
"""The most images that are drawn by default: more would cost time in every epoch."""


MIN_MERGED = 100_000
"""Candidates that are collected before they are merged."""


class Candidates(NamedTuple):
    """Rows of one label that may be drawn: the hashes of their images, in the order of ranks."""

    hashes: UInt64Array
    ranks: UInt64Array


def default_count(rows: int) -> int:
    """Return how many images of so many are drawn by default."""
    return max(1, min(rows // DEFAULT_SHARE, MAX_DEFAULT))


def shares(counts: Int64Array, total: int) -> Int64Array:
    """Divide `total` images among classes by their `counts`, by the method of largest remainders.

    A class with at least three images gives at least one, and every class keeps at least one.
    """
    exact = counts * (total / max(1, int(counts.sum())))
    result = np.floor(exact).astype(np.int64)
    order = np.argsort(result - exact, kind="stable")
    result[order[: total - int(result.sum())]] += 1
    result = np.maximum(result, counts >= 3)
    bounded: Int64Array = np.minimum(result, np.maximum(counts - 1, 0))
    return bounded


def lowest_ranks(
    hashes: UInt64Array, labels: Int64Array, counts: Int64Array, seed: int
) -> dict[int, Candidates]:
    """Return the candidates of each label: the `counts[label]` rows of lowest ranks, with copies,
    and the image after them."""
    # Numbers of 16 bits are sorted in one pass.
    order = np.argsort(labels.astype(np.uint16), kind="stable")
    stops = np.cumsum(np.bincount(labels, minlength=len(counts)))
    candidates = dict[int, Candidates]()
    for label, rows in enumerate(np.split(order, stops[:-1])):
        if len(rows) and counts[label]:
            own = hashes[rows]
            candidates[label] = _lowest(own, _rank(own, seed), int(counts[label]))
    return candidates


class Merger:
    """The candidates of one label, merged as those of more rows are added."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._parts = list[Candidates]()
        self._size = 0

    def add(self, part: Candidates) -> None:
        """Add candidates of other rows."""
        self._parts.append(part)
        self._size += len(part.ranks)
        # To merge costs as much as to sort all, so it is done each time that they have doubled.
        if self._size > 2 * self._count + MIN_MERGED:
            self.merge()

    def merge(self) -> Candidates:
        """Return the candidates of all rows so far."""
        hashes, ranks = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        self._parts = [_lowest(hashes, ranks, self._count)]
        self._size = len(self._parts[0].ranks)
        return self._parts[0]


def split_candidates(
    candidates: Mapping[int, Candidates], counts: Mapping[str, Int64Array]
) -> dict[str, UInt64Array]:
    """Return the sorted hashes of the images of each split; `counts` are their images by label.

    The first split has the lowest ranks. Copies of an image are in the first split that has one.
    The image of highest rank is in none, so that each label keeps one, however many of its rows are
    copies or were rejected.
    """
    drawn = dict[str, UInt64Array]()
    taken = np.zeros(len(next(iter(counts.values()))), np.int64)
    earlier = np.zeros(0, np.uint64)
    for split, numbers in counts.items():
        chosen = [
            own.hashes[own.ranks < own.ranks[-1]][taken[label] : taken[label] + numbers[label]]
            for label, own in candidates.items()
        ]
        hashes = np.unique(np.concatenate(chosen)) if chosen else earlier
        drawn[split] = hashes[~np.isin(hashes, earlier)]
        earlier = np.union1d(earlier, hashes)
        taken += numbers
    return drawn


def _lowest(hashes: UInt64Array, ranks: UInt64Array, count: int) -> Candidates:
    order = np.argsort(ranks, kind="stable")
    ordered = ranks[order]
    # Ranks are equal only for copies.
    after = int(np.searchsorted(ordered, ordered[:count][-1], side="right"))
    kept = np.concatenate([order[:count], order[after:][:1]])
    return Candidates(hashes[kept], ranks[kept])


def _rank(hashes: UInt64Array, seed: int) -> UInt64Array:
    """Mix hashes with the seed, so that ranks are independent of what images look like.

    The finalizer of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", 2014.
    """
    gamma = 0x9E3779B97F4A7C15
    values = hashes + np.uint64(gamma * (seed + 1) % (1 << 64))
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64Array = values ^ (values >> np.uint64(31))
    return mixed
