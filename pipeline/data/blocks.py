"""Blocks: images as Arrow tables, which Ray Data passes from function to function.

A block has the columns `id` int64, `image` (tensors of uint8, height x width), `label` int64 if
labels are known, and others of the source. Columns that begin with `_` are the pipeline's own:

- `_error`: why the row cannot be used, or null. Such a row has a black image and no label.
- `_split`: the split of the row.
- `_shard`: the number of the shard that the row is written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.arrays import Int8Array, Int64Array, UInt8Array
from pipeline.data.readers.rows import RejectedRow, RowBatch

ERROR, SPLIT, SHARD = OWN = "_error", "_split", "_shard"


def to_block(batch: RowBatch, *, split: str, shard: int) -> pa.Table:
    """Return rows and rejected rows as a block."""
    num_rows = len(batch.ids)
    columns = {name: batch.columns[name] for name in batch.columns.column_names}
    columns |= {"id": pa.array(batch.ids), "image": to_tensors(batch.images)}
    if batch.labels is not None:
        columns["label"] = pa.array(batch.labels)
    block = pa.table(columns | {ERROR: pa.nulls(num_rows, pa.string())})
    if batch.rejects:
        black = np.zeros((len(batch.rejects), *batch.images.shape[1:]), np.uint8)
        rejected = {
            "id": pa.array([row.id for row in batch.rejects], pa.int64()),
            "image": to_tensors(black),
            ERROR: pa.array([row.reason for row in batch.rejects], pa.string()),
        }
        block = pa.concat_tables([block, pa.table(rejected)], promote_options="default")
    block = block.append_column(SPLIT, to_splits(np.zeros(len(block), np.int8), [split]))
    return block.append_column(SHARD, pa.repeat(pa.scalar(shard), len(block)))


def to_tensors(images: UInt8Array) -> pa.ExtensionArray:
    """Return images (N, height, width) as an array of tensors; contiguous ones are not copied."""
    shape = images.shape[1:]
    flat = pa.array(np.ascontiguousarray(images).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, prod(shape))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), shape), storage)


def to_splits(indices: Int8Array, splits: Sequence[str]) -> pa.DictionaryArray:
    """Return the column `_split` of rows whose splits have these indices in `splits`."""
    return pa.DictionaryArray.from_arrays(pa.array(indices), pa.array(splits))


def images(block: pa.Table) -> UInt8Array:
    """Return the images of a block (N, height, width); those of one chunk are not copied."""
    chunks = [chunk.to_numpy_ndarray() for chunk in block["image"].chunks if len(chunk)]
    if len(chunks) == 1:
        return chunks[0]  # type: ignore[no-any-return]
    if chunks:
        return np.concatenate(chunks)
    return np.zeros((0, *block.schema.field("image").type.shape), np.uint8)


def valid_rows(block: pa.Table) -> pa.Table:
    """Return the rows without an error."""
    errors = block[ERROR]
    return block if errors.null_count == len(block) else block.filter(pc.is_null(errors))


def group_by_split(rows: pa.Table, splits: Sequence[str]) -> dict[str, pa.Table]:
    """Return the rows of each of these splits."""
    if len(splits) == 1:
        return {splits[0]: rows}
    names = rows[SPLIT].to_numpy()
    return {split: rows.filter(names == split) for split in splits}


def rejected_rows(block: pa.Table) -> list[RejectedRow]:
    """Return the rows with an error."""
    if block[ERROR].null_count == len(block):
        return []
    rejected = block.filter(pc.is_valid(block[ERROR]))
    ids, reasons = rejected["id"].to_pylist(), rejected[ERROR].to_pylist()
    return [RejectedRow(*row) for row in zip(ids, reasons, strict=True)]


def with_errors(block: pa.Table, reasons: dict[int, str]) -> pa.Table:
    """Return the block with errors of the rows at these positions; earlier errors stay."""
    if not reasons:
        return block
    errors = block[ERROR].to_pylist()
    for row, reason in reasons.items():
        errors[row] = errors[row] or reason
    return set_column(block, ERROR, pa.array(errors, pa.string()))


def set_column(block: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Return the block with this column, in place of an older one of its name."""
    index = block.schema.get_field_index(name)
    if index < 0:
        return block.append_column(name, values)
    return block.set_column(index, name, values)


def iter_shards(block: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number and the rows of each shard of a block, whose rows are consecutive."""
    numbers: Int64Array = block[SHARD].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
    for start, stop in zip(starts[:-1], starts[1:], strict=True):
        if start < stop:
            yield int(numbers[start]), block.slice(start, stop - start)
