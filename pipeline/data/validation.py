"""Validation of rows, and the statistics of splits.

The rows of a shard are validated in the task that reads them. Only their statistics and hashes,
which are small, come back to the driver, which adds them up per split.
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
from pipeline.data.classes import MAX_CLASSES
from pipeline.data.image_hashes import HashSet, hash_images
from pipeline.data.readers.rows import RejectedRow
from pipeline.errors import DataError

PIXELS_PER_SUM = 1 << 16
"""The squares of so many pixels add up to less than 2^32 (uint32), and stay in the cache."""

MAX_EXAMPLES = 5
"""Ids shown of rows that are rejected for the same reason, and reasons shown."""

MAX_REASONS = 1000
"""Reasons counted one by one: each broken image file has its own."""

OTHER = "other reasons"


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

    def add(self, other: SplitStats) -> None:
        """Add the statistics of other rows of the split."""
        self.rows += other.rows
        self.labels += other.labels
        self.pixel_sum += other.pixel_sum
        self.pixel_square_sum += other.pixel_square_sum
        for reason, count in other.rejects.items():
            self.add_rejects(reason, other.examples[reason], count)

    def add_rejects(self, reason: str, ids: Iterable[int], count: int) -> None:
        """Count rows as rejected for this reason; `ids` are those of some of them."""
        if reason not in self.rejects and len(self.rejects) >= MAX_REASONS:
            reason = OTHER
        self.rejects[reason] += count
        examples = self.examples.get(reason, [])
        self.examples[reason] = sorted([*examples, *ids])[:MAX_EXAMPLES]

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


def find_single_colors(images: UInt8Array, hashes: UInt64Array) -> dict[int, str]:
    """Return the rows whose pixels are all equal, with the reason to reject them.

    `hashes` are those of `hash_images`.
    """
    num_pixels = prod(images.shape[1:])
    # Comparing hashes is faster than comparing pixels. Only images with the hash of a single-colour
    # image, which are few, are compared by their pixels.
    reasons = {}
    for row in np.flatnonzero(_single_color_hashes(num_pixels).contains(hashes)):
        color = images[row, 0, 0]
        if (images[row] == color).all():
            reasons[int(row)] = f"all pixels are {color}"
    return reasons


def measure(images: UInt8Array, labels: Int64Array) -> SplitStats:
    """Return the statistics of valid rows."""
    counts = np.bincount(labels, minlength=MAX_CLASSES)
    stats = SplitStats(rows=len(labels), labels=counts)
    flat = images.reshape(-1)
    for start in range(0, len(flat), PIXELS_PER_SUM):
        pixels = flat[start : start + PIXELS_PER_SUM].astype(np.uint32)
        stats.pixel_sum += int(np.einsum("i->", pixels))
        stats.pixel_square_sum += int(np.einsum("i,i->", pixels, pixels))
    return stats


def measure_rejects(rejects: Iterable[RejectedRow]) -> SplitStats:
    """Return the statistics of rejected rows."""
    stats = SplitStats()
    for row in rejects:
        stats.add_rejects(row.reason, [row.id], 1)
    return stats


@cache
def _single_color_hashes(pixels: int) -> HashSet:
    """Return the hashes of the 256 images of so many equal pixels.

    The hash is linear, so they are multiples of the hash of the image of ones.
    """
    ones = hash_images(np.ones((1, pixels), np.uint8))
    return HashSet(np.sort(np.multiply(ones, np.arange(256, dtype="u8"))))


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
        rejected = not quarantine and any(stats.rejects for stats in splits.values())
        advice = ", or skip invalid rows with --data.on-bad-row quarantine" if rejected else ""
        raise DataError(f"The source is not valid: {'; '.join(problems)}. Fix it{advice}.")


def _describe_rejects(split: str, stats: SplitStats) -> list[str]:
    """Return a line for each of the most common reasons."""
    lines = []
    for reason, count in stats.rejects.most_common(MAX_EXAMPLES):
        ids = ", ".join(map(str, stats.examples[reason]))
        if count > MAX_EXAMPLES:
            ids += ", ..."
        lines.append(f"{count:,} rows of {split}: {reason} (ids {ids})")
    shown = sum(count for _, count in stats.rejects.most_common(MAX_EXAMPLES))
    if left := stats.rejects.total() - shown:
        lines.append(f"{left:,} rows of {split}: {OTHER}")
    return lines
