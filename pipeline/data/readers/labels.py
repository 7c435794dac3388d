"""Labels as files hold them, and the classes that they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from pipeline.arrays import Int64Array
from pipeline.errors import DataError

Label: TypeAlias = int | str
"""A label of a source: a number, or the name of its class."""

Labels: TypeAlias = Int64Array | Sequence[object]
"""Labels of rows, in order."""

LabelCounts: TypeAlias = Mapping[Label, int]
"""The number of rows of each label in a file."""


MAX_LABELS = 100_000
"""A column of more different labels does not hold classes, and would fill the memory."""

MAX_NUMBER = 1 << 63
"""Labels are int64."""


def count_labels(labels: Labels) -> LabelCounts:
    """Return how often each label occurs."""
    if isinstance(labels, np.ndarray):
        unique, counts = np.unique(labels, return_counts=True)
        return keep_labels(dict(zip(unique.tolist(), counts.tolist(), strict=True)))
    return keep_labels(Counter(labels))


def keep_labels(counts: Mapping[Any, int]) -> LabelCounts:
    """Return the counts of text and of numbers from 0; other values count as missing labels."""
    return {
        label: count
        for label, count in counts.items()
        if isinstance(label, str) or (isinstance(label, int) and 0 <= label < MAX_NUMBER)
    }


def add_counts(total: Counter[Label], counts: LabelCounts, name: str) -> None:
    """Add the labels of the file `name`. Raise DataError if they are too many for classes."""
    total.update(counts)
    if len(total) > MAX_LABELS:
        raise DataError(
            f"{name}: over {MAX_LABELS:,} different labels, such as {_shown(next(iter(counts)))}. "
            "The column or file of labels holds no classes."
        )


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
    return repr(label)[:99] if isinstance(label, str) else str(label)


def _list(classes: tuple[Label, ...]) -> str:
    if list(classes) == list(range(len(classes))):
        return f"0 to {len(classes) - 1}"
    names = ", ".join(map(str, classes[:9]))
    return f"{names}, ..." if len(classes) > 9 else names
