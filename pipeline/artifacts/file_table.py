"""Entries of files as a Parquet table, for manifests of very many files.

Columns: `path` string, `bytes` int64, `sha256` string, `rows` int64, null for files without rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.manifests import FileEntry

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


def decode(content: bytes) -> Iterator[list[dict[str, Any]]]:
    """Yield the fields of the entries of a Parquet file, some at a time.

    Raise ValueError if it is damaged or has other columns.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        if not file.schema_arrow.equals(SCHEMA):
            raise ValueError(f"the table has the columns {file.schema_arrow.names}")
        for batch in file.iter_batches(ROWS_AT_A_TIME, use_threads=False):
            yield batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"the table could not be read: {error}") from None
