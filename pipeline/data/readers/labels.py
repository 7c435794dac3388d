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
"""Labels of rows, in order: numbers, or text, which may hold numbers (see `number_of`)."""

LabelCounts: TypeAlias = Mapping[Label, int]
"""The number of rows of each label in a file."""


MAX_LABELS = 100_000
"""A column of more different labels does not hold classes, and would fill the memory."""

MAX_NUMBER = 1 << 63
"""Labels are int64."""

NO_NUMBER = -1
"""In place of a label that is missing, or a number but not an integer from 0."""

MAX_EXACT = 1 << 53
"""Integers below are exact as float64."""


def number_of(text: str) -> int | None:
    """Return the number that text holds, `NO_NUMBER` if it cannot be a label, or None for a name.

    `3`, `03` and `3.0` are 3.
    """
    try:
        number = float(text)
    except ValueError:
        return None
    if "_" in text or (number >= MAX_EXACT and text.isdecimal()):
        return None
    return int(number) if number.is_integer() and 0 <= number < MAX_EXACT else NO_NUMBER


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
        if (isinstance(label, str) and label.strip())
        or (isinstance(label, int) and 0 <= label < MAX_NUMBER)
    }


def hold_names(counts: LabelCounts) -> bool:
    """Return whether a label is a name, and no number. Raise DataError if others are integers."""
    texts = [label for label in counts if isinstance(label, str)]
    if not any(number_of(text) is None for text in texts):
        return False
    if len(texts) < len(counts):
        raise DataError(
            "Some labels of the source are numbers, and others text. Use one kind in all files."
        )
    return True


def by_number(counts: LabelCounts) -> LabelCounts:
    """Return the counts of labels that are numbers, or text that holds numbers."""
    numbers = Counter[Label]()
    for label, count in counts.items():
        number = number_of(label) if isinstance(label, str) else label
        if number not in (None, NO_NUMBER):
            numbers[number] += count
    return numbers


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

    Numbers in `classes` are in ascending order, and text is compared as numbers with them. Rows
    without a class have the index 0.
    """
    if isinstance(classes[0], int):
        numbers = labels if isinstance(labels, np.ndarray) else _to_numbers(labels)
        values = np.array(classes, np.int64)
        indices = np.searchsorted(values, numbers).clip(max=len(values) - 1)
        unknown = values[indices] != numbers
    else:
        positions = {label: index for index, label in enumerate(classes)}
        indices = np.array([positions.get(label, -1) for label in labels], np.int64)  # type: ignore[arg-type]
        unknown = indices < 0
    indices = np.where(unknown, 0, indices)
    reasons = {
        row: "the label is missing"
        if labels[row] is None
        else f"the label {_shown(labels[row])} is not one of {_list(classes)}"
        for row in np.flatnonzero(unknown).tolist()
    }
    return indices, reasons


def _to_numbers(labels: Sequence[object]) -> Int64Array:
    known: dict[object, int | None] = {
        label: number_of(label) for label in set(labels) if isinstance(label, str)
    }
    numbers = [known.get(label) for label in labels]
    return np.array([NO_NUMBER if number is None else number for number in numbers], np.int64)


def _shown(label: object) -> str:
    return repr(label)[:99] if isinstance(label, str) else str(label)


def _list(classes: tuple[Label, ...]) -> str:
    if list(classes) == list(range(len(classes))):
        return f"0 to {len(classes) - 1}"
    names = ", ".join(map(str, classes[:9]))
    return f"{names}, ..." if len(classes) > 9 else names
