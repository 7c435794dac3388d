"""Shards of a dataset: Parquet files of ids, images and labels, to and from arrays.

Columns: `id: int64` (position in the source, in any order), `image: fixed_size_binary(height *
width)` (row-major uint8), `label: uint8`; compressed with zstd. Images are fixed-size binary
because it decodes to one buffer, and list columns to one Python object per row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.arrays import Int64Array, UInt8Array
from pipeline.artifacts.commit import read_file
from pipeline.artifacts.manifests import DatasetManifest, FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec
from pipeline.errors import SettingError

ROW_GROUP = 10_000
"""Rows per row group, so that a range of a large shard can be read by itself."""

SAMPLE_BLOCKS = 20


@dataclass(frozen=True)
class LabeledImages:
    """Rows of a dataset: ids int64 (N,), images uint8 (N, height, width), labels uint8 (N,)."""

    ids: Int64Array
    images: UInt8Array
    labels: UInt8Array


def schema(image: ImageSpec) -> pa.Schema:
    """Return the columns of a shard, with height, width and class names as metadata."""
    metadata = {
        "height": str(image.height),
        "width": str(image.width),
        "class_names": json.dumps(image.class_names),
    }
    fields = [("id", pa.int64()), ("image", pa.binary(image.num_pixels)), ("label", pa.uint8())]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields], metadata)


def encode(rows: LabeledImages, image: ImageSpec) -> pa.Buffer:
    """Return the Parquet file of these rows; the same rows give the same bytes."""
    pixels = pa.py_buffer(np.ascontiguousarray(rows.images))
    columns = [
        pa.array(rows.ids),
        pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(image.num_pixels), len(rows.ids), [None, pixels]
        ),
        pa.array(rows.labels),
    ]
    # Images hardly repeat, so a dictionary would not save space; no reader filters by their bytes,
    # so statistics are of no help.
    options = {"use_dictionary": ["label"], "write_statistics": ["id", "label"]}
    return encode_parquet(pa.Table.from_arrays(columns, schema=schema(image)), **options)


def encode_parquet(table: pa.Table, **options: Any) -> pa.Buffer:
    """Return a table as a Parquet file with zstd; `options` are those of `pq.write_table`."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP, compression="zstd", **options)
    return sink.getvalue()


def pixels(column: pa.ChunkedArray, image: ImageSpec) -> UInt8Array:
    """Return a fixed-size binary column without nulls as uint8 (N, height, width).

    A column of one chunk is not copied.
    """
    chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    flat = np.frombuffer(chunk.buffers()[1], np.uint8)
    start = chunk.offset * image.num_pixels
    return flat[start : start + len(chunk) * image.num_pixels].reshape(-1, *image.shape)


def iter_shards(storage: Storage, dataset: DatasetManifest, split: str) -> Iterator[LabeledImages]:
    """Yield the shards of a split in their order, each verified against the manifest."""
    if split not in dataset.rows:
        raise SettingError(f"Split {split!r} is not one of {', '.join(dataset.rows)}.")
    for entry in dataset.shards(split):
        yield _read_shard(storage, dataset, entry)


def iter_rows(
    storage: Storage, dataset: DatasetManifest, split: str, rows: Int64Array
) -> Iterator[LabeledImages]:
    """Yield some rows of a split, given their sorted positions, shard by shard.

    Only the shards that hold them are read.
    """
    stop = 0
    for entry in dataset.shards(split):
        start, stop = stop, stop + (entry.rows or 0)
        own = rows[slice(*np.searchsorted(rows, (start, stop)))] - start
        if len(own):
            shard = _read_shard(storage, dataset, entry)
            yield LabeledImages(shard.ids[own], shard.images[own], shard.labels[own])


def sample(
    storage: Storage, dataset: DatasetManifest, split: str, count: int
) -> Iterator[LabeledImages]:
    """Yield `count` rows of a split, or all of a smaller one, shard by shard.

    They are SAMPLE_BLOCKS blocks of rows, evenly spaced, so that few shards are read. `count` is a
    multiple of SAMPLE_BLOCKS.
    """
    total = dataset.rows[split]
    if total <= count:
        return iter_rows(storage, dataset, split, np.arange(total))
    starts = np.arange(SAMPLE_BLOCKS) * total // SAMPLE_BLOCKS
    rows = starts[:, None] + np.arange(count // SAMPLE_BLOCKS)
    return iter_rows(storage, dataset, split, rows.ravel())


def read(storage: Storage, dataset: DatasetManifest, files: Sequence[FileEntry]) -> LabeledImages:
    """Return the rows of these shards, in this order."""
    rows = sum(entry.rows or 0 for entry in files)
    ids = np.empty(rows, np.int64)
    images = np.empty((rows, *dataset.image.shape), np.uint8)
    labels = np.empty(rows, np.uint8)
    start = 0
    for entry in files:
        shard = _read_shard(storage, dataset, entry)
        stop = start + len(shard.ids)
        ids[start:stop] = shard.ids
        images[start:stop] = shard.images
        labels[start:stop] = shard.labels
        start = stop
    assert start == rows, f"the shards have {start} rows, their manifest says {rows}"
    return LabeledImages(ids, images, labels)


def read_split(storage: Storage, dataset: DatasetManifest, split: str) -> LabeledImages:
    """Return all rows of a split, in the order of its shards."""
    return read(storage, dataset, dataset.shards(split))


def _read_shard(storage: Storage, dataset: DatasetManifest, entry: FileEntry) -> LabeledImages:
    return decode(read_file(storage, f"datasets/{dataset.ref}", entry), dataset.image)


def decode(content: bytes, image: ImageSpec) -> LabeledImages:
    """Return the rows of a shard."""
    # One thread: training reads shards ahead, and that must leave the other cores to its steps.
    file = pa.BufferReader(content)
    table = pq.ParquetFile(file).read(use_threads=False).cast(schema(image))
    return LabeledImages(
        table["id"].to_numpy(), pixels(table["image"], image), table["label"].to_numpy()
    )
