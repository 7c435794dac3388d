"""Splits: which rows of a source are `train`, `val` and `test`.

Files of a source belong to a split, and so do their rows; or rows of the training files are
assigned one by one: drawn by image (see `draw`), or by a column.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.arrays import Int64Array, UInt64Array
from pipeline.config import Data
from pipeline.console import progress, warn
from pipeline.data import draw, validation
from pipeline.data.layout import SPLITS, WORDS, split_of
from pipeline.data.partitions import map_shards
from pipeline.data.plan import Plan
from pipeline.data.readers.rows import RejectedRow, RowBatch, Rows
from pipeline.data.sources import Source
from pipeline.errors import DataError, SettingError

NO_HASHES: UInt64Array = np.zeros(0, np.uint64)


class SplitRows(NamedTuple):
    """Valid rows of one split, and the hash of each image."""

    batch: RowBatch
    hashes: UInt64Array


@dataclass(frozen=True)
class Pool:
    """Rows of a source that are written together, and how they are assigned to splits.

    A row is of the split in `drawn` whose sorted hashes hold its image; or, if there is a `column`,
    of the split that it names; otherwise of `split`. `later_hashes` are, by split, the sorted
    hashes of the images of later splits, which must not occur in it.
    """

    split: str
    plan: Plan
    drawn: Mapping[str, UInt64Array] = field(default_factory=dict)
    column: str | None = None
    later_hashes: Mapping[str, UInt64Array] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that rows of the pool may belong to, in order."""
        if self.column:
            return SPLITS
        return tuple(split for split in SPLITS if split == self.split or split in self.drawn)

    def read(self, number: int) -> tuple[dict[str, SplitRows], list[RejectedRow]]:
        """Return the valid rows of a shard by split, and all its rejected rows."""
        batch = self.plan.read(number, (self.column,) if self.column else ())
        batch, hashes = validation.reject_single_colors(batch)
        batch, hashes, positions = self._assign(batch, hashes)
        rejects = list(batch.rejects)
        by_split = dict[str, SplitRows]()
        for split, rows in positions.items():
            own = replace(batch.take(rows), rejects=())
            later = self.later_hashes.get(split, NO_HASHES)
            valid, own_hashes = validation.reject_repeated(own, hashes[rows], later)
            rejects += valid.rejects
            by_split[split] = SplitRows(valid, own_hashes)
        return by_split, rejects

    def _assign(
        self, batch: RowBatch, hashes: UInt64Array
    ) -> tuple[RowBatch, UInt64Array, dict[str, Int64Array]]:
        """Return the positions of each split's rows; a row of no split is rejected."""
        names = np.full(len(hashes), self.split, object)
        if self.column:
            words = _text(batch.columns[self.column], self.column)
            names = np.array([_split_in_column(word) for word in words], object)
            reasons = {
                row: f"column {self.column} is {repr(words[row])[:99]}, which is none of {WORDS}"
                for row in range(len(words))
                if names[row] is None
            }
            batch, hashes = batch.drop(reasons), np.delete(hashes, list(reasons))
            names = np.delete(names, list(reasons))
        for split, own in reversed(list(self.drawn.items())):
            names[np.isin(hashes, validation.common(hashes, own))] = split
        return batch, hashes, {split: np.flatnonzero(names == split) for split in self.splits}


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
    """Return the pools of a source, those of later splits first, without draws and hashes."""
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
            pools.append(Pool(split, plan, column=column))
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


def draw_splits(pool: Pool, counts: Mapping[str, Int64Array], seed: int) -> Pool:
    """Read all rows of a pool, and return it with the images that are drawn for splits.

    `counts` are the numbers of images of each class, by split.
    """
    total = sum(counts.values(), np.zeros(1, np.int64))
    candidates = dict[int, draw.Candidates]()
    for result in _map_hashes(pool, "draw", counts=total, seed=seed):
        for label, own in result.items():
            known = candidates.get(label, draw.Candidates(NO_HASHES, NO_HASHES))
            candidates[label] = draw.merge(known, own, int(total[label]))
    return replace(pool, drawn=draw.split_candidates(candidates, counts))


def hash_splits(pool: Pool) -> Pool:
    """Read all rows of a pool with a column, and return it with the hashes of later splits."""
    own = {split: [NO_HASHES] for split in SPLITS}
    for result in _map_hashes(pool, "split", counts=None, seed=0):
        for split, hashes in result.items():
            own[split].append(hashes)
    hashes = {split: np.unique(np.concatenate(parts)) for split, parts in own.items()}
    for split in SPLITS:
        if not len(hashes[split]):
            raise DataError(f"--data.split-by {pool.column!r}: no row is of the split {split!r}.")
    later = {"train": np.union1d(hashes["val"], hashes["test"]), "val": hashes["test"]}
    return replace(pool, later_hashes=later)


def _map_hashes(pool: Pool, title: str, **options: Any) -> Iterator[dict[Any, Any]]:
    with progress(title, total=pool.plan.num_rows) as show:
        rows = 0
        for result in map_shards(pool.plan, _hash_task, fn_kwargs={"pool": pool, **options}):
            rows += result["rows"]
            show(rows, "rows")
            yield pickle.loads(result["result"])


def _hash_task(
    item: dict[str, Any], *, pool: Pool, counts: Int64Array | None, seed: int
) -> list[dict[str, Any]]:
    """Return, of each shard, the candidates of the draw by label, or the hashes by split."""
    results = []
    for number in item["numbers"]:
        by_split, _ = pool.read(int(number))
        hashes = {split: rows.hashes for split, rows in by_split.items()}
        result: dict[Any, Any] = hashes
        if counts is not None:
            rows = by_split[pool.split]
            assert rows.batch.labels is not None
            result = draw.lowest_ranks(rows.hashes, rows.batch.labels, counts, seed)
        num_rows = pool.plan.shard_rows(int(number))
        results.append({"rows": num_rows, "result": pickle.dumps(result)})
    return results


def _checked(number: int, rows: int) -> int:
    if number >= rows:
        raise SettingError(
            f"--data.num-val is {number}, but there are only {rows} training images. "
            "Leave some to train on."
        )
    return number
