"""Splits: which rows of a source are `train`, `val` and `test`.

Files of a source belong to a split, and so do their rows; or rows of the training files are
assigned one by one: drawn by image (see `draw`), or by a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.arrays import Int64Array, UInt64Array
from pipeline.config import Data
from pipeline.console import warn
from pipeline.data import blocks, draw, validation
from pipeline.data.datasource import plan_tasks, read_tasks
from pipeline.data.image_hashes import NO_HASHES, HashSet, hash_images
from pipeline.data.layout import SPLITS, WORDS, split_of
from pipeline.data.plan import Plan
from pipeline.data.readers.rows import Rows
from pipeline.data.sources import Source
from pipeline.data.streaming import result_block, stream
from pipeline.errors import DataError, SettingError

HASH = "_hash"
"""The column of the hashes of images, uint64."""

RESERVED = {"id", "image", "label", HASH, *blocks.OWN}
"""Names of columns that a source's own columns must not have."""

_WITHOUT_IMAGES = [blocks.SPLIT, blocks.ERROR, HASH, "label"]

REPEATED = "the image stands in a later split"


@dataclass(frozen=True)
class SplitRule:
    """How rows that are read together are assigned to splits.

    A row is of the split in `drawn` whose hashes have that of its image; or, if there is a
    `column`, of the split that it names; otherwise of `split`. `later_hashes` are, by split, those
    of the images of later splits, which must not occur in it.
    """

    split: str
    drawn: Mapping[str, HashSet] = field(default_factory=dict)
    column: str | None = None
    later_hashes: Mapping[str, HashSet] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that rows may belong to, in order."""
        if self.column:
            return SPLITS
        return tuple(split for split in SPLITS if split == self.split or split in self.drawn)

    def apply(self, block: pa.Table) -> pa.Table:
        """Return a block with the split and the hash of each row, and the errors of invalid rows:
        images of one colour, of no split, or that stand in a later split."""
        images = blocks.images(block)
        hashes = hash_images(images)
        block = blocks.with_errors(block, validation.find_single_colors(images, hashes))
        if self.column:
            block = self._split_by_column(block, self.column)
        elif self.drawn:
            indices = np.full(len(hashes), SPLITS.index(self.split), np.int8)
            for split, own in self.drawn.items():
                indices[own.contains(hashes)] = SPLITS.index(split)
            block = blocks.set_column(block, blocks.SPLIT, blocks.to_splits(indices, SPLITS))
        block = blocks.with_errors(block, self._find_repeated(block, hashes))
        return blocks.set_column(block, HASH, pa.array(hashes))

    def apply_all(self, parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Apply the rule to each of several blocks."""
        return map(self.apply, parts)

    def _split_by_column(self, block: pa.Table, column: str) -> pa.Table:
        words = _text(block[column], column)
        names = [_split_in_column(word) for word in words]
        unknown = {
            row: f"column {column} is {repr(words[row])[:99]}, which is none of {WORDS}"
            for row, name in enumerate(names)
            if name is None
        }
        block = blocks.with_errors(block, unknown)
        indices = np.array([SPLITS.index(name or self.split) for name in names], np.int8)
        return blocks.set_column(block, blocks.SPLIT, blocks.to_splits(indices, SPLITS))

    def _find_repeated(self, block: pa.Table, hashes: UInt64Array) -> dict[int, str]:
        """Return the rows whose images stand in a later split (test leakage)."""
        reasons = dict[int, str]()
        for split, later in self.later_hashes.items():
            repeated = later.contains(hashes)
            if repeated.any():
                own = repeated & (block[blocks.SPLIT].to_numpy() == split)
                reasons |= dict.fromkeys(np.flatnonzero(own).tolist(), REPEATED)
        return reasons


class Pool(NamedTuple):
    """Rows of a source that are written together, and how they are assigned to splits."""

    plan: Plan
    rule: SplitRule


def _text(column: pa.ChunkedArray, name: str) -> list[str | None]:
    try:
        words: list[str | None] = column.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        raise DataError(
            f"--data.split-by {name!r}: the column is of the type {column.type}, but it must hold "
            f"one of {WORDS}."
        ) from None
    return words


def _split_in_column(word: str | None) -> str | None:
    split = split_of(word or "")
    return "test" if split == "eval" else split


def make_pools(source: Source, data: Data) -> list[Pool]:
    """Return the pools of a source, those of later splits first, without draws and hashes.

    Raise SettingError if the column of splits has a name that blocks use.
    """
    if source.split_column in RESERVED:
        raise SettingError(
            f"--data.split-by {source.split_column!r}: this name is used for a column of the "
            "pipeline's own. Rename the column of splits."
        )
    seed = None if source.num_last_val is not None else data.seed
    ranges: dict[str, tuple[Rows, int, int]] = {
        split: (rows, 0, rows.num_rows) for split, rows in source.splits.items()
    }
    rows = source.splits["train"]
    if source.num_last_val is not None and "val" not in ranges:
        num_train = rows.num_rows - _checked(data.num_val or source.num_last_val, rows.num_rows)
        ranges["train"] = rows, 0, num_train
        ranges["val"] = rows, num_train, rows.num_rows
    pools = []
    for split in reversed(SPLITS):
        if split in ranges:
            plan = Plan(*ranges[split], data.rows_per_shard, seed)
            plan.require_bounded()
            column = source.split_column if split == "train" else None
            pools.append(Pool(plan, SplitRule(split, column=column)))
    return pools


def draw_counts(source: Source, data: Data) -> dict[str, Int64Array]:
    """Return how many images of each class are drawn for the splits that the source lacks."""
    if source.split_column:
        return {}
    missing = [split for split in ("test", "val") if split not in source.splits]
    if source.num_last_val is not None and "val" in missing:
        missing.remove("val")
    counts = dict[str, Int64Array]()
    left = np.array(source.train_counts, np.int64)
    total = int(left.sum())
    for split in missing:
        asked = data.num_val if split == "val" else None
        number = _checked(asked or draw.default_count(total), total)
        counts[split] = draw.shares(left, number)
        left = left - counts[split]
        short = [
            name
            for name, own, all_rows in zip(
                source.class_names, counts[split], source.train_counts, strict=True
            )
            if not own and all_rows
        ]
        if short:
            warn(
                f"{len(short)} classes have too few images to give {split} one: "
                f"{', '.join(short[:9])}"
            )
    return counts


def assign_splits(pool: Pool, counts: Mapping[str, Int64Array], seed: int) -> Pool:
    """Return a pool whose rule knows all splits of its rows; read the rows first if it must.

    `counts` are those of `draw_counts`.
    """
    if pool.rule.column:
        return hash_splits(pool)
    if pool.rule.split == "train" and counts:
        return draw_splits(pool, counts, seed)
    return pool


def draw_splits(pool: Pool, counts: Mapping[str, Int64Array], seed: int) -> Pool:
    """Read all rows of a pool, and return it with the images that are drawn for splits.

    `counts` are the numbers of images of each class, by split.
    """
    total = sum(counts.values(), np.zeros(1, np.int64))
    mergers = dict[int, draw.Merger]()

    def find_candidates(rows: pa.Table) -> dict[int, draw.Candidates]:
        return draw.lowest_ranks(rows[HASH].to_numpy(), rows["label"].to_numpy(), total, seed)

    for result in _map_pool(pool, "draw", find_candidates):
        for label, own in result.items():
            mergers.setdefault(label, draw.Merger(int(total[label]))).add(own)
    candidates = {label: merger.merge() for label, merger in mergers.items()}
    drawn = draw.split_candidates(candidates, counts)
    rule = replace(pool.rule, drawn={split: HashSet(own) for split, own in drawn.items()})
    return pool._replace(rule=rule)


def hash_splits(pool: Pool) -> Pool:
    """Read all rows of a pool with a column, and return it with the hashes of later splits."""
    own = {split: [NO_HASHES] for split in ("val", "test")}
    seen = set[str]()

    def later_hashes(rows: pa.Table) -> dict[str, UInt64Array]:
        """Return the hashes of each split, but none of `train`, the most."""
        names, hashes = rows[blocks.SPLIT].to_numpy(), rows[HASH].to_numpy()
        by_split = {split: hashes[names == split] for split in SPLITS if (names == split).any()}
        return by_split | ({"train": NO_HASHES} if "train" in by_split else {})

    for result in _map_pool(pool, "split", later_hashes):
        seen |= result.keys()
        for split, parts in own.items():
            parts.append(result.get(split, NO_HASHES))
    for split in SPLITS:
        if split not in seen:
            column = pool.rule.column
            raise DataError(
                f"--data.split-by {column!r}: no row is of the split {split!r}, but rows of train, "
                "val and test are needed. Name some in the column."
            )
    val, test = (np.unique(np.concatenate(parts)) for parts in own.values())
    later = {"train": HashSet(np.union1d(val, test)), "val": HashSet(test)}
    return pool._replace(rule=replace(pool.rule, later_hashes=later))


def _map_pool(pool: Pool, title: str, function: Callable[[pa.Table], object]) -> Iterator[Any]:
    """Yield what a function returns for the valid rows of each task: their split, hash and label,
    after the rule."""
    rule = pool.rule

    def compute(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
        # Without images, the rows of all shards of a task are small.
        light = [block.select(_WITHOUT_IMAGES) for block in rule.apply_all(parts)]
        rows = pa.concat_tables(light, promote_options="default")
        yield result_block(len(rows), function(blocks.valid_rows(rows)))

    # The order of rows does not matter here, and unmixed ones are read faster.
    plan = replace(pool.plan, seed=None)
    columns = [rule.column] if rule.column else []
    tasks = plan_tasks(plan, rule.split, columns=columns, function=compute, returns_images=False)
    yield from stream(read_tasks(tasks), title, plan.num_rows)


def _checked(number: int, rows: int) -> int:
    if number >= rows:
        raise SettingError(
            f"--data.num-val is {number}, but there are only {rows} training images. "
            "Leave some to train on."
        )
    return number
