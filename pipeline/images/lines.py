"""Remove the lines of ruled and squared paper from ink."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

BoolArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

SLOPES = np.tan(np.deg2rad(np.arange(-15, 15.1, 0.5)))
"""The slopes that are tried; the best by how unevenly it spreads the ink over rows."""

FULL = 0.85
"""Share of a row's pixels from which it is a line; a digit has a margin."""

MAX_THICKNESS = 0.06
"""Most thickness of a line, as a share of the image's side."""


def without_lines(mask: BoolArray, faint: BoolArray) -> BoolArray:
    """Return the ink without lines that run through the whole image, along it or across.

    `faint` also has ink that is fainter, so that lines are not broken. What is thicker than a line
    at some place stays there, so that strokes are not cut where they cross a line.
    """
    without: BoolArray = _without_level_lines(mask, faint)
    without = _without_level_lines(without.T, faint.T)
    return without.T


def _without_level_lines(mask: BoolArray, faint: BoolArray) -> BoolArray:
    height, width = mask.shape
    y, x = np.nonzero(faint)

    def unevenness(slope: float) -> float:
        counts = np.bincount(np.rint(y - x * slope).astype(np.int64) + width)
        return float((counts.astype(np.float64) ** 2).sum())

    slope = max(SLOPES, key=unevenness)
    rows = np.rint(np.arange(height)[:, None] - np.arange(width) * slope).astype(np.int64) + width
    size = np.bincount(rows.ravel())
    count = np.bincount(rows[faint], minlength=len(size))
    lines = (count >= FULL * size) & (size >= 0.8 * width)
    thickness = _longest_run(lines)
    if not 0 < thickness <= MAX_THICKNESS * height:
        return mask
    beside = lines.copy()
    beside[1:] |= lines[:-1]
    beside[:-1] |= lines[1:]
    side = (thickness + 3) | 1
    margin = ((side // 2, side // 2), (0, 0))
    thick: BoolArray = mask
    for extreme in (np.min, np.max):
        windows = sliding_window_view(np.pad(thick, margin, mode="edge"), side, axis=0)
        thick = extreme(windows, axis=-1)
    kept: BoolArray = mask & (thick | ~beside[rows])
    return kept


def _longest_run(values: BoolArray) -> int:
    edges = np.flatnonzero(np.diff(np.pad(values, 1).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))
