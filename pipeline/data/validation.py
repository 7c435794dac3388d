"""What is wrong with the rows of a source, found before any is written, and what they are like.

Each piece of the rows is looked at where it lies; what is found of it is small, and is added up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import numpy as np

from pipeline.arrays import Int64Array, UInt8Array, UInt64Array
from pipeline.data.readers.rows import RowBatch
from pipeline.errors import DataError

MAX_CLASSES = 256
"""Labels are uint8."""

PIXELS_PER_SUM = 1 << 16
"""So many squares of pixels add up to less than 2^32, and stay in the cache."""

EXAMPLES = 5
"""Ids that are shown of rows that are bad in the same way."""


@dataclass
class SplitStats:
    """Of a split: rows by label, sums of pixels, and bad rows by reason."""

    rows: int = 0
    labels: Int64Array = field(default_factory=lambda: np.zeros(MAX_CLASSES, np.int64))
    total: int = 0
    total_of_squares: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[int]] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    """The first id of each label."""

    @property
    def highest(self) -> int:
        """The highest label; -1 without rows."""
        return max(self.first, default=-1)

    def add(self, other: SplitStats) -> None:
        self.rows += other.rows
        self.labels += other.labels
        self.total += other.total
        self.total_of_squares += other.total_of_squares
        for label, row in other.first.items():
            self.first[label] = min(row, self.first.get(label, row))
        for reason, count in other.bad.items():
            self.add_rejects(reason, other.examples[reason], count)

    def add_rejects(self, reason: str, ids: Iterable[int], count: int) -> None:
        self.bad[reason] += count
        known = self.examples.setdefault(reason, [])
        self.examples[reason] = sorted([*known, *ids])[:EXAMPLES]

    def reject_labels_from(self, num_classes: int) -> None:
        """Counts rows of labels from `num_classes` on as bad; their pixels stay in the mean."""
        for label in [label for label in self.first if label >= num_classes]:
            reason = f"the label {label} is not one of 0 to {num_classes - 1}"
            self.add_rejects(reason, [self.first.pop(label)], int(self.labels[label]))
            self.rows -= int(self.labels[label])

    def summary(self, class_names: tuple[str, ...], pixels: int) -> dict[str, Any]:
        """Rows of each class, mean and standard deviation of all pixels, 0 to 255."""
        count = max(1, self.rows * pixels)
        mean = self.total / count
        return {
            "rows": self.rows,
            "classes": {name: int(n) for name, n in zip(class_names, self.labels, strict=False)},
            "mean": round(mean, 4),
            "deviation": round(max(0.0, self.total_of_squares / count - mean**2) ** 0.5, 4),
        }


def validate(
    block: RowBatch, class_names: tuple[str, ...] | None, later: UInt64Array
) -> tuple[RowBatch, SplitStats, UInt64Array]:
    """The rows of a block that are of use, what was found in all, and a hash of each of use.

    `later` are the hashes, sorted, of the images of later splits: a model would be tested on them.
    """
    assert block.labels is not None
    highest = len(class_names) if class_names else MAX_CLASSES
    reasons = {
        int(at): f"the label {block.labels[at]} is not one of 0 to {highest - 1}"
        for at in np.flatnonzero((block.labels < 0) | (block.labels >= highest))
    }
    hashes = _hashes(block.images)
    # Few images have the hash of one of a single colour; those are looked at.
    plain = common(hashes, _single_color_hashes(prod(block.images.shape[1:])))
    for row in np.flatnonzero(np.isin(hashes, plain)):
        if (block.images[row] == block.images[row, 0, 0]).all():
            reasons.setdefault(int(row), f"all pixels are {block.images[row, 0, 0]}")
    for row in np.flatnonzero(np.isin(hashes, common(hashes, later))):
        reasons.setdefault(int(row), "the image stands in a later split")
    sound = block.drop(reasons)
    assert sound.labels is not None
    counts = np.bincount(sound.labels, minlength=MAX_CLASSES)
    found = SplitStats(
        rows=len(sound.ids),
        labels=counts,
        first={int(k): int(sound.ids[sound.labels == k][0]) for k in np.flatnonzero(counts)},
    )
    flat = sound.images.reshape(-1)
    for start in range(0, len(flat), PIXELS_PER_SUM):
        pixels = flat[start : start + PIXELS_PER_SUM].astype(np.uint32)
        found.total += int(np.einsum("i->", pixels))
        found.total_of_squares += int(np.einsum("i,i->", pixels, pixels))
    for bad in sound.bad:
        found.add_rejects(bad.reason, [bad.id], 1)
    return sound, found, np.delete(hashes, list(reasons))


def _hashes(images: UInt8Array) -> UInt64Array:
    """Of each image: those that differ share one with a chance of 2^-33 at most, where they differ
    by the highest bit of a word alone, and of 2^-64 where the lowest differs (multilinear hashing;
    Lemire and Kaser, "Strongly universal string hashing is fast", 2014)."""
    flat = images.reshape(len(images), prod(images.shape[1:]))
    # Four pixels a word.
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 4))) if flat.shape[1] % 4 else flat
    words = np.ascontiguousarray(flat).view(np.uint32)
    hashes: UInt64Array = np.einsum("ij,j->i", words, _factors(words.shape[1]))
    return hashes


@cache
def _factors(count: int) -> UInt64Array:
    return np.frombuffer(np.random.default_rng(0).bytes(8 * count), dtype=np.uint64)


@cache
def _single_color_hashes(pixels: int) -> UInt64Array:
    """The hashes of the images of this many pixels that are of one colour, sorted: multiples of
    one."""
    one = _hashes(np.ones((1, pixels), np.uint8))
    return np.sort(np.multiply(one, np.arange(256, dtype="u8")))


def common(hashes: UInt64Array, known: UInt64Array) -> UInt64Array:
    """Those hashes that are among the known ones, which are sorted."""
    if not len(known):
        return known
    # In order, they are looked for in places that lie near each other.
    hashes = np.sort(hashes)
    is_known = known[np.searchsorted(known, hashes).clip(max=len(known) - 1)] == hashes
    found: UInt64Array = hashes[is_known]
    return found


def raise_if_invalid(
    splits: Mapping[str, SplitStats], class_names: tuple[str, ...], *, quarantine: bool
) -> None:
    """DataError that lists what is wrong, unless bad rows are quarantined and none is missing."""
    problems = [
        f"{count:,} rows of {split}: {reason} (ids {', '.join(map(str, found.examples[reason]))}"
        f"{', ...' if count > EXAMPLES else ''})"
        for split, found in splits.items()
        for reason, count in found.bad.most_common(EXAMPLES)
        if not quarantine
    ]
    problems += [f"no row of {split} is of use" for split, of in splits.items() if not of.rows]
    if empty := [
        name for name, n in zip(class_names, splits["train"].labels, strict=False) if not n
    ]:
        names = ", ".join(empty[:EXAMPLES])
        problems.append(f"{len(empty)} classes have no image in train ({names})")
    if problems:
        raise DataError(
            f"The source is not sound: {'; '.join(problems)}. Mend it, or leave bad rows out by "
            "--data.on-bad-row quarantine."
        )
