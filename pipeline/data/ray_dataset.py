"""Sources as Datasets of Ray, and Datasets of Ray as datasets of the pipeline.

`preprocess` does the same, and more: it looks for images that stand in two splits, and it resumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset, Datasink
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import WriteResult

from pipeline.artifacts.commit import digest
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.replacement import Replacement
from pipeline.artifacts.storage import Storage
from pipeline.config import Data
from pipeline.contract import ImageSpec
from pipeline.data import splits
from pipeline.data.blocks import ERROR, SHARD, SPLIT, set_column, valid_rows
from pipeline.data.dataset_writer import DatasetWriter, Output, commit_dataset
from pipeline.data.datasource import plan_tasks, read_tasks
from pipeline.data.layout import SPLITS
from pipeline.data.sources import Source, open_source
from pipeline.data.splits import SplitRule
from pipeline.errors import DataError, SettingError

ROWS_PER_SHARD = 10_000
"""Rows of a shard that `DatasetSink` writes, at most."""

MAX_TASKS = 100_000
"""The names of shards number tasks with five digits, or more if there are more."""


def read_images(data: Data | str, *, columns: Sequence[str] = ()) -> Dataset:
    """Return all images of a source, as the settings or a path name it, as a Dataset of Ray.

    Columns: `id` int64, `image` uint8 (height, width), `label` int64 (an index into the source's
    class names), `columns` of the source, and those of `blocks`: `_split` is the split of the row,
    and `_error` the reason why it cannot be used, or null.

    If the source has no `val` or `test`, all images are read now to draw them. Ray is started as by
    `ray.init()` if it does not run. Raise SettingError if a column has one of these names, and the
    errors of `open_source`.
    """
    if taken := splits.RESERVED & {*columns}:
        raise SettingError(f"Columns {sorted(taken)} have names of the pipeline's own.")
    if isinstance(data, str):
        data = Data(name="images", source=data)
    source = open_source(data)
    if not ray.is_initialized():
        ray.init()
    counts = splits.draw_counts(source, data)
    tasks = []
    for pool in splits.make_pools(source, data):
        plan, rule = splits.assign_splits(pool, counts, data.seed)
        own = [rule.column] if rule.column and rule.column not in columns else []
        tasks += plan_tasks(plan, rule.split, columns=[*columns, *own], function=rule.apply_all)
    # No memory is reserved: Ray fuses operations that reserve the same, and others reserve none.
    return read_tasks(tasks, memory=None)


class DatasetSink(Datasink[Output]):
    """A writer of blocks as `read_images` returns them, as a dataset that training reads.

    `source` is what was read, and `functions` a JSON value that says what was done to it: the
    version of the dataset is the digest of both. `shape` is the height and width of images, if they
    are no longer those of the source. The dataset is committed after all blocks were written;
    `manifest` is then its manifest. Rows with an error are listed in its folder `rejected`.
    """

    def __init__(
        self,
        root: str,
        name: str,
        source: Source,
        *,
        functions: object,
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.storage = Storage(root)
        image = ImageSpec(*(shape or source.shape), source.class_names, source.preparation)
        self.manifest = DatasetManifest(
            name=name,
            version=digest(dict(source.digests), image.class_names, image.shape, functions),
            caveat=source.caveat,
            image=image,
            rows={},
            source=dict(source.digests),
        )

    def write(self, blocks: Iterable[Block], ctx: Any) -> Output:
        """Write blocks as shards. Raise DataError if columns are missing or images do not fit."""
        folder, image = f"datasets/{self.manifest.ref}", self.manifest.image
        writer = DatasetWriter(
            self.storage, folder, image, SplitRule("train", column=SPLIT), MAX_TASKS
        )
        written = Output()
        for block in blocks:
            rows = BlockAccessor.for_block(block).to_arrow()
            missing = {"id", "image", "label", SPLIT, ERROR} - set(rows.column_names)
            if missing:
                raise DataError(
                    f"Blocks lack the columns {', '.join(sorted(missing))}, which `read_images` "
                    "returned. Keep them in your own functions."
                )
            _check(rows, image)
            # Rows may have been shuffled, so shards are cut anew.
            rows = set_column(rows, SHARD, pa.repeat(pa.scalar(ctx.task_idx), len(rows)))
            for start in range(0, len(rows), ROWS_PER_SHARD):
                written.merge(writer.write_blocks([rows.slice(start, ROWS_PER_SHARD)]))
        return written

    def on_write_complete(self, write_result: WriteResult[Output]) -> None:
        """Commit the dataset. Raise DataError if a split has no row."""
        written = Output()
        for output in write_result.write_returns:
            written.merge(output)
        empty = [split for split in SPLITS if not written.stats[split].rows]
        if empty:
            raise DataError(
                f"No valid row is of the split {empty[0]!r}. Set the column `{SPLIT}` of some rows "
                "to it."
            )
        folder = f"datasets/{self.manifest.ref}"
        replacement = Replacement(self.storage, folder, DatasetManifest)
        self.manifest = commit_dataset(self.storage, self.manifest, written, replacement)


def _check(rows: pa.Table, image: ImageSpec) -> None:
    """Raise DataError if images or labels do not fit a dataset."""
    shape = getattr(rows.schema.field("image").type, "shape", "of several sizes")
    if shape != image.shape:
        raise DataError(
            f"Images are {shape}, but those of the dataset {image.shape}. Give `shape` to the sink."
        )
    labels = valid_rows(rows)["label"]
    num_classes = len(image.class_names)
    known = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, num_classes))
    if labels.null_count or pc.any(pc.invert(known)).as_py():
        raise DataError(f"Labels are not all from 0 to {num_classes - 1}, as there are classes.")
