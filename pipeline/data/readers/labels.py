"""Labels as files hold them, and the classes that they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from pipeline.arrays import Int64Array

Label: TypeAlias = int | str
"""A label of a source: a number, or the name of its class."""

Labels: TypeAlias = Int64Array | Sequence[object]
"""Labels of rows, in order."""

LabelCounts: TypeAlias = Mapping[Label, int]
"""The number of rows of each label in a file."""


def count_labels(labels: Labels) -> LabelCounts:
    """Return how often each label occurs, without nulls and negative numbers."""
    if isinstance(labels, np.ndarray):
        unique, counts = np.unique(labels, return_counts=True)
        pairs = list(zip(unique.tolist(), counts.tolist(), strict=True))
    else:
        pairs = list(Counter(labels).items())
    return {
        label: count
        for label, count in pairs
        if isinstance(label, str) or (isinstance(label, int) and label >= 0)
    }


def index_labels(labels: Labels, classes: tuple[Label, ...]) -> tuple[Int64Array, dict[int, str]]:
    """Return the index of each label in `classes`, int64 (N,), and why a row has none.

    Numbers in `classes` are in ascending order. Rows without a class have the index 0.
    """
    if isinstance(labels, np.ndarray):
        values = np.array(classes, np.int64)
        indices = np.searchsorted(values, labels).clip(max=len(values) - 1)
        unknown = values[indices] != labels
    else:
        positions = {label: index for index, label in enumerate(classes)}
        indices = np.array([positions.get(label, -1) for label in labels], np.int64)  # type: ignore[call-overload]
        unknown = indices < 0
    indices = np.where(unknown, 0, indices)
    reasons = {
        int(row): f"the label {_shown(labels[int(row)])} is not one of {_list(classes)}"
        for row in np.flatnonzero(unknown)
    }
    return indices, reasons


def _shown(label: object) -> str:
    return repr(label) if isinstance(label, str) else str(label)


def _list(classes: tuple[Label, ...]) -> str:
    if list(classes) == list(range(len(classes))):
        return f"0 to {len(classes) - 1}"
    names = ", ".join(map(str, classes[:9]))
    return f"{names}, ..." if len(classes) > 9 else names
