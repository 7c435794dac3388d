"""Plans: which rows of a source become which shard.

A mixed shard takes runs of rows from many places of the source, evenly spaced, and shuffles them.
So a source in order of class gives shards that hold all classes, though no row passes through
another task. A plan is arithmetic: a task needs only its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from pipeline.data.readers.rows import RowBatch, Rows
from pipeline.errors import SettingError

MAX_SHARDS = 10_000_000
"""Names of shards number them with seven digits."""

MAX_SHARD_PIXELS = 1 << 30
"""A worker holds the images of a shard in memory (1 GiB), more than once."""


@dataclass(frozen=True)
class Plan:
    """The shards of rows start..stop, of `rows_per_shard` rows at most.

    Without a `seed`, a shard holds consecutive rows; with one, the rows are mixed.
    """

    rows: Rows
    start: int
    stop: int
    rows_per_shard: int
    seed: int | None = None

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @cached_property
    def num_shards(self) -> int:
        return -(-self._num_runs // self._runs_per_shard)

    @cached_property
    def _runs_per_shard(self) -> int:
        if self.seed is None:
            return 1
        return min(self.rows_per_shard, *(reader.max_runs for reader in self.rows.readers))

    @cached_property
    def _run_rows(self) -> int:
        return self.rows_per_shard // self._runs_per_shard

    @cached_property
    def _num_runs(self) -> int:
        return -(-self.num_rows // self._run_rows)

    def ranges(self, number: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of rows of a shard, in order."""
        # Every so many runs, not a run and those after it: the shard holds rows of all places.
        for run in range(number, self._num_runs, self.num_shards):
            begin = self.start + run * self._run_rows
            yield begin, min(begin + self._run_rows, self.stop)

    def shard_rows(self, number: int) -> int:
        """Return the number of rows of a shard."""
        rows = len(range(number, self._num_runs, self.num_shards)) * self._run_rows
        if (self._num_runs - 1) % self.num_shards == number:
            rows -= self._num_runs * self._run_rows - self.num_rows
        return rows

    def read(self, number: int, columns: Sequence[str] = ()) -> RowBatch:
        """Return the rows of a shard, with these additional columns.

        Raise DataError if a file was changed since it was opened.
        """
        batch = self.rows.read_ranges(self.ranges(number), columns)
        self.rows.require_unchanged(self.ranges(number))
        if self.seed is None:
            return batch
        return batch.take(np.random.default_rng([self.seed, number]).permutation(len(batch.ids)))

    def require_bounded(self) -> None:
        """Raise SettingError if a shard would not fit into memory, or if there are too many."""
        first = self.rows.readers[0]
        name = first.storage.display(first.entry.path)
        pixels = prod(self.rows.shape)
        if self.num_shards > MAX_SHARDS:
            raise SettingError(
                f"{name} and the files after it have {self.num_rows:,} rows. With "
                f"{self.rows_per_shard:,} rows per shard that makes more than {MAX_SHARDS:,} "
                "shards. If the number of rows is right, give a larger rows-per-shard."
            )
        if min(self.rows_per_shard, self.num_rows) * pixels > MAX_SHARD_PIXELS:
            raise SettingError(
                f"{name} has images of {' x '.join(map(str, self.rows.shape))}: a worker would "
                f"hold {self.rows_per_shard:,} of them, a shard, in memory. Give a "
                f"rows-per-shard of {max(1, MAX_SHARD_PIXELS // pixels):,} or less."
            )
