"""Validation of rows, and the statistics of splits.

Each partition is validated in the task that reads it. Only its statistics and hashes, which are
small, come back to the driver, which adds them up per split.
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
"""The squares of so many pixels add up to less than 2^32 (uint32), and stay in the cache."""

MAX_EXAMPLES = 5
"""Ids shown of rows that are rejected for the same reason."""


@dataclass
class SplitStats:
    """Statistics of a split: its valid rows by label, sums of their pixels, rejects by reason."""

    rows: int = 0
    labels: Int64Array = field(default_factory=lambda: np.zeros(MAX_CLASSES, np.int64))
    """The number of rows of each label."""
    pixel_sum: int = 0
    pixel_square_sum: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    """The number of rejected rows by reason."""
    examples: dict[str, list[int]] = field(default_factory=dict)
    """The lowest ids of rejected rows by reason, `MAX_EXAMPLES` at most."""
    first_ids: dict[int, int] = field(default_factory=dict)
    """The lowest id of each label."""

    @property
    def highest_label(self) -> int:
        """The highest label; -1 without rows."""
        return max(self.first_ids, default=-1)

    def add(self, other: SplitStats) -> None:
        """Add the statistics of other rows of the split."""
        self.rows += other.rows
        self.labels += other.labels
        self.pixel_sum += other.pixel_sum
        self.pixel_square_sum += other.pixel_square_sum
        for label, row in other.first_ids.items():
            self.first_ids[label] = min(row, self.first_ids.get(label, row))
        for reason, count in other.rejects.items():
            self.add_rejects(reason, other.examples[reason], count)

    def add_rejects(self, reason: str, ids: Iterable[int], count: int) -> None:
        """Count rows as rejected for this reason; `ids` are those of some of them."""
        self.rejects[reason] += count
        examples = self.examples.get(reason, [])
        self.examples[reason] = sorted([*examples, *ids])[:MAX_EXAMPLES]

    def reject_labels_from(self, num_classes: int) -> None:
        """Count rows of label `num_classes` or more as rejected; their pixels stay in the mean."""
        for label in [label for label in self.first_ids if label >= num_classes]:
            reason = f"the label {label} is not one of 0 to {num_classes - 1}"
            self.add_rejects(reason, [self.first_ids.pop(label)], int(self.labels[label]))
            self.rows -= int(self.labels[label])

    def summary(self, class_names: tuple[str, ...], pixels: int) -> dict[str, Any]:
        """Return rows, rows by class, and mean and standard deviation of all pixels (0 to 255).

        `pixels` is the number of pixels of an image.
        """
        count = max(1, self.rows * pixels)
        mean = self.pixel_sum / count
        # Rounding can bring the variance of constant pixels below 0.
        variance = max(0.0, self.pixel_square_sum / count - mean**2)
        classes = zip(class_names, self.labels, strict=False)
        return {
            "rows": self.rows,
            "classes": {name: int(num_rows) for name, num_rows in classes},
            "mean": round(mean, 4),
            "deviation": round(variance**0.5, 4),
        }


def validate(
    batch: RowBatch, class_names: tuple[str, ...] | None, later_hashes: UInt64Array
) -> tuple[RowBatch, SplitStats, UInt64Array]:
    """Validate a batch. Return its valid rows, statistics, and a hash per valid row.

    A row is rejected if its label is not a class, if all its pixels are equal, or if the hash of
    its image is in `later_hashes` (sorted): the image also occurs in a later split (test leakage).
    """
    hashes = _hash_images(batch.images)
    # A row keeps one reason: the rightmost of these wins.
    reasons = (
        _repeated_images(hashes, later_hashes)
        | _single_colors(batch, hashes)
        | _invalid_labels(batch, class_names)
    )
    valid = batch.drop(reasons)
    return valid, _measure(valid), np.delete(hashes, list(reasons))


def _invalid_labels(batch: RowBatch, class_names: tuple[str, ...] | None) -> dict[int, str]:
    """Return the reason for each row whose label is not a class, by position."""
    labels = batch.labels
    assert labels is not None
    num_classes = len(class_names) if class_names else MAX_CLASSES
    return {
        int(row): f"the label {labels[row]} is not one of 0 to {num_classes - 1}"
        for row in np.flatnonzero((labels < 0) | (labels >= num_classes))
    }


def _single_colors(batch: RowBatch, hashes: UInt64Array) -> dict[int, str]:
    """Return the reason for each row whose pixels are all equal, by position."""
    num_pixels = prod(batch.images.shape[1:])
    # Comparing hashes is faster than comparing pixels. Only images with the hash of a single-colour
    # image, which are few, are compared by their pixels.
    candidates = common(hashes, _single_color_hashes(num_pixels))
    reasons = {}
    for row in np.flatnonzero(np.isin(hashes, candidates)):
        color = batch.images[row, 0, 0]
        if (batch.images[row] == color).all():
            reasons[int(row)] = f"all pixels are {color}"
    return reasons


def _repeated_images(hashes: UInt64Array, later_hashes: UInt64Array) -> dict[int, str]:
    """Return the reason for each row whose image also occurs in a later split, by position."""
    repeated = np.isin(hashes, common(hashes, later_hashes))
    return {int(row): "the image stands in a later split" for row in np.flatnonzero(repeated)}


def _measure(valid: RowBatch) -> SplitStats:
    """Return the statistics of a validated batch: of its rows, and of its rejects."""
    assert valid.labels is not None
    counts = np.bincount(valid.labels, minlength=MAX_CLASSES)
    stats = SplitStats(rows=len(valid.ids), labels=counts)
    for label in np.flatnonzero(counts):
        stats.first_ids[int(label)] = int(valid.ids[valid.labels == label][0])
    flat = valid.images.reshape(-1)
    for start in range(0, len(flat), PIXELS_PER_SUM):
        pixels = flat[start : start + PIXELS_PER_SUM].astype(np.uint32)
        stats.pixel_sum += int(np.einsum("i->", pixels))
        stats.pixel_square_sum += int(np.einsum("i,i->", pixels, pixels))
    for row in valid.rejects:
        stats.add_rejects(row.reason, [row.id], 1)
    return stats


def _hash_images(images: UInt8Array) -> UInt64Array:
    """Hash each image to 64 bits.

    An image is a vector of 32-bit words, and its hash the dot product with a fixed random vector,
    modulo 2^64 (multilinear hashing; Lemire and Kaser, "Strongly universal string hashing is fast",
    2014). Two different images collide with probability 2^-33 at worst (only the top bit of a word
    differs) and 2^-64 at best.
    """
    flat = images.reshape(len(images), prod(images.shape[1:]))
    # Four pixels make a word. Pad the last one with zeros.
    padding = -flat.shape[1] % 4
    if padding:
        flat = np.pad(flat, ((0, 0), (0, padding)))
    words = np.ascontiguousarray(flat).view(np.uint32)
    hashes: UInt64Array = np.einsum("ij,j->i", words, _hash_factors(words.shape[1]))
    return hashes


@cache
def _hash_factors(count: int) -> UInt64Array:
    return np.frombuffer(np.random.default_rng(0).bytes(8 * count), dtype=np.uint64)


@cache
def _single_color_hashes(pixels: int) -> UInt64Array:
    """Return the sorted hashes of the 256 images of so many equal pixels.

    The hash is linear, so they are multiples of the hash of the image of ones.
    """
    ones = _hash_images(np.ones((1, pixels), np.uint8))
    return np.sort(np.multiply(ones, np.arange(256, dtype="u8")))


def common(hashes: UInt64Array, sorted_hashes: UInt64Array) -> UInt64Array:
    """Return those hashes that are among the sorted ones."""
    if not len(sorted_hashes):
        return sorted_hashes
    # Sorted as well, neighbours are searched for in the same cache lines: faster than unsorted.
    hashes = np.sort(hashes)
    positions = np.searchsorted(sorted_hashes, hashes).clip(max=len(sorted_hashes) - 1)
    matches: UInt64Array = hashes[sorted_hashes[positions] == hashes]
    return matches


def raise_if_invalid(
    splits: Mapping[str, SplitStats], class_names: tuple[str, ...], *, quarantine: bool
) -> None:
    """Raise DataError if rows are rejected, a split has no valid row, or a class has none in train.

    With `quarantine`, rejected rows alone are not an error. The message lists all problems.
    """
    problems = list[str]()
    if not quarantine:
        for split, stats in splits.items():
            problems += _describe_rejects(split, stats)
    problems += [f"no row of {split} is valid" for split, stats in splits.items() if not stats.rows]
    counts = splits["train"].labels
    empty = [name for name, count in zip(class_names, counts, strict=False) if not count]
    if empty:
        names = ", ".join(empty[:MAX_EXAMPLES])
        problems.append(f"{len(empty)} classes have no image in train ({names})")
    if problems:
        raise DataError(
            f"The source is not valid: {'; '.join(problems)}. Fix it, or skip invalid rows with "
            "--data.on-bad-row quarantine."
        )


def _describe_rejects(split: str, stats: SplitStats) -> list[str]:
    """Return a line for each of the most common reasons."""
    lines = []
    for reason, count in stats.rejects.most_common(MAX_EXAMPLES):
        ids = ", ".join(map(str, stats.examples[reason]))
        if count > MAX_EXAMPLES:
            ids += ", ..."
        lines.append(f"{count:,} rows of {split}: {reason} (ids {ids})")
    return lines
