"""Parquet shards <-> arrays, in the columns of the contract.

`id: int64` (position in the source), `image: fixed_size_binary(height * width)` (row-major uint8),
`label: uint8`; zstd. Fixed-size binary because list columns become one Python object a row.
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
"""Rows that are decoded together, so that a range of a large shard can be read by itself."""


@dataclass(frozen=True)
class LabeledImages:
    """Rows of a dataset: ids int64 (N,), images uint8 (N, height, width), labels uint8 (N,)."""

    ids: Int64Array
    images: UInt8Array
    labels: UInt8Array


def schema(image: ImageSpec) -> pa.Schema:
    """The columns of a shard; height, width and class names stand in its metadata."""
    metadata = {
        "height": str(image.height),
        "width": str(image.width),
        "class_names": json.dumps(image.class_names),
    }
    fields = [("id", pa.int64()), ("image", pa.binary(image.num_pixels)), ("label", pa.uint8())]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields], metadata)


def encode(split: LabeledImages, image: ImageSpec) -> pa.Buffer:
    """The Parquet file of these rows; the same rows give the same bytes."""
    pixels = pa.py_buffer(np.ascontiguousarray(split.images))
    columns = [
        pa.array(split.ids),
        pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(image.num_pixels), len(split.ids), [None, pixels]
        ),
        pa.array(split.labels),
    ]
    # No two images are the same, and none is looked for by its bytes.
    options = {"use_dictionary": ["label"], "write_statistics": ["id", "label"]}
    return encode_parquet(pa.Table.from_arrays(columns, schema=schema(image)), **options)


def encode_parquet(table: pa.Table, **options: Any) -> pa.Buffer:
    """A table as the bytes of a Parquet file with zstd; `options` are pyarrow's."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP, compression="zstd", **options)
    return sink.getvalue()


def pixels(column: pa.ChunkedArray, image: ImageSpec) -> UInt8Array:
    """A fixed-size binary column without nulls as uint8 (N, height, width), not copied if whole."""
    whole = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    flat = np.frombuffer(whole.buffers()[1], np.uint8)
    start = whole.offset * image.num_pixels
    return flat[start : start + len(whole) * image.num_pixels].reshape(-1, *image.shape)


def iter_shards(storage: Storage, dataset: DatasetManifest, split: str) -> Iterator[LabeledImages]:
    """The shards of a split in the order of ids, each verified against the manifest."""
    if split not in dataset.rows:
        raise SettingError(f"Split {split!r} is not one of {', '.join(dataset.rows)}.")
    for entry in dataset.shards(split):
        yield _read_shard(storage, dataset, entry)


def read(storage: Storage, dataset: DatasetManifest, files: Sequence[FileEntry]) -> LabeledImages:
    """The rows of these shards, in this order, in memory."""
    rows = sum(entry.rows or 0 for entry in files)
    images, labels = np.empty((rows, *dataset.image.shape), np.uint8), np.empty(rows, np.uint8)
    ids = np.empty(rows, np.int64)
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
    """A whole split in memory, in the order of ids."""
    return read(storage, dataset, dataset.shards(split))


def _read_shard(storage: Storage, dataset: DatasetManifest, entry: FileEntry) -> LabeledImages:
    data = read_file(storage, f"datasets/{dataset.ref}", entry)
    # In this thread alone: who reads ahead must leave the other cores to the training.
    file = pa.BufferReader(data)
    table = pq.ParquetFile(file).read(use_threads=False).cast(schema(dataset.image))
    return LabeledImages(
        table["id"].to_numpy(), pixels(table["image"], dataset.image), table["label"].to_numpy()
    )
