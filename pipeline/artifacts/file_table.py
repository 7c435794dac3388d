"""Entries of files as a Parquet table, for manifests of very many files.

Columns: `path` string, `bytes` int64, `sha256` string, `rows` int64, null for files without rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.manifests import FileEntry, check_path

SCHEMA = pa.schema(
    [("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string()), ("rows", pa.int64())]
)

ROWS_AT_A_TIME = 100_000


def encode(entries: Sequence[FileEntry]) -> pa.Buffer:
    """Return the Parquet file of entries."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
        for start in range(0, len(entries), ROWS_AT_A_TIME):
            part = entries[start : start + ROWS_AT_A_TIME]
            columns = {name: [getattr(entry, name) for entry in part] for name in SCHEMA.names}
            writer.write_table(pa.table(columns, SCHEMA))
    return sink.getvalue()


def decode(content: bytes) -> tuple[FileEntry, ...]:
    """Return the entries of a Parquet file. Raise ValueError if a column or a path is not valid."""
    file = pq.ParquetFile(pa.BufferReader(content))
    if not file.schema_arrow.equals(SCHEMA):
        raise ValueError(f"the table has the columns {file.schema_arrow.names}")
    return tuple(
        check_path(FileEntry(*values))
        for batch in file.iter_batches(ROWS_AT_A_TIME, use_threads=False)
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    )
