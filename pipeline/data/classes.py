"""The classes of a source: their names and their order, from the labels of all its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.artifacts.threads import parallel_map
from pipeline.console import say
from pipeline.data.readers.labels import Label, LabelCounts, add_counts, by_number, hold_names
from pipeline.data.readers.rows import LabelledReader, Reader
from pipeline.errors import DataError

MAX_CLASSES = 256
"""Labels are uint8."""


class Classes(NamedTuple):
    """The names of the classes, and the label of each in the files, in the same order."""

    names: tuple[str, ...]
    labels: tuple[Label, ...]

    def num_rows(self, counts: Mapping[Label, int]) -> tuple[int, ...]:
        """Return the number of rows of each class."""
        return tuple(counts.get(label, 0) for label in self.labels)


def assign_classes(
    readers: Mapping[str, Sequence[LabelledReader]],
    names: tuple[str, ...] | None = None,
    first_label: int = 0,
) -> tuple[tuple[str, ...], dict[str, list[Reader]], tuple[int, ...]]:
    """Return the names of the classes, the readers with labels as indices of them, and the number
    of rows of each class in `train`.

    `names` are those of a known data set, whose lowest label is `first_label`. Otherwise files name
    them; if none does, each label that occurs is a class of its own name. Text is taken as numbers
    if all labels are. Raise DataError if files name classes differently, or if there are too many
    or fewer than two.
    """
    everything = [reader for own in readers.values() for reader in own]
    by_split = {split: _count_labels(own) for split, own in readers.items()}
    counts: LabelCounts = sum(by_split.values(), Counter[Label]())
    train_counts: LabelCounts = by_split["train"]
    if not hold_names(counts):
        counts, train_counts = by_number(counts), by_number(train_counts)
    if names is not None:
        labels: tuple[Label, ...] = tuple(range(first_label, first_label + len(names)))
        classes = Classes(names, labels)
    else:
        classes = _name_classes(_names_in_files(everything), counts)
    check_number(len(classes.names))
    with_classes = {
        split: [reader.with_classes(classes.labels) for reader in own]
        for split, own in readers.items()
    }
    return classes.names, with_classes, classes.num_rows(train_counts)


def _count_labels(readers: Sequence[LabelledReader]) -> Counter[Label]:
    counts = Counter[Label]()
    for reader, own in zip(
        readers, parallel_map(lambda one: one.count_labels(), readers), strict=True
    ):
        add_counts(counts, own, reader.storage.display(reader.entry.path))
    return counts


def check_number(num_classes: int) -> None:
    """Raise DataError if a classifier cannot have so many classes."""
    if not 2 <= num_classes <= MAX_CLASSES:
        raise DataError(
            f"The source has {num_classes} classes, but 2 to {MAX_CLASSES} are needed, as labels "
            "are uint8. Add images of another class, or merge some."
        )


def _name_classes(names: tuple[str, ...] | None, counts: Mapping[Label, int]) -> Classes:
    if names is not None and not any(isinstance(label, str) for label in counts):
        labels = [label for label in range(len(names)) if label in counts]
        absent = [name for label, name in enumerate(names) if label not in counts]
        if absent:
            say(f"{len(absent)} classes are left out, as no image has them: {', '.join(absent)}")
        return Classes(tuple(names[label] for label in labels), tuple(labels))
    # All are numbers, or all text.
    labels_in_order = tuple(sorted(counts))
    return Classes(tuple(str(label) for label in labels_in_order), labels_in_order)


def _names_in_files(readers: Sequence[LabelledReader]) -> tuple[str, ...] | None:
    """Return the class names that files say. Raise DataError if they differ."""
    first: LabelledReader | None = None
    for reader in readers:
        if reader.class_names is None:
            continue
        first = first or reader
        if reader.class_names != first.class_names:
            shown = [
                f"{one.storage.display(one.entry.path)} names the classes "
                f"{', '.join(one.class_names or ())}"
                for one in (first, reader)
            ]
            raise DataError(
                f"{shown[0]}, but {shown[1]}: a label would mean different classes. Write all "
                "files with the same names in the same order."
            )
    return first.class_names if first else None
