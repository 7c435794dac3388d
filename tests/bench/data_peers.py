"""The peers of the benchmark of data: the same shards and scores, written without the pipeline.

Each uses a process per core.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.catalog import ROLES

ROWS_PER_SHARD = 10_000
BATCH = 4096
CORES = os.cpu_count() or 1
PIXELS = 28 * 28
HEADER = 16


@contextmanager
def temporary_folder(folder: Path) -> Iterator[None]:
    folder.mkdir()
    yield
    shutil.rmtree(folder)


def in_processes(work: Callable[[Any], None], items: list[Any]) -> float:
    """Return the seconds of the work in one process per core, without their start."""
    with ProcessPoolExecutor(CORES, get_context("spawn")) as pool:
        list(pool.map(_nothing, range(8 * CORES)))
        started = time.perf_counter()
        list(pool.map(work, items))
        return time.perf_counter() - started


def _nothing(number: int) -> None:
    time.sleep(0.05)


def write_shards(source: Path, out: Path, rows: int) -> float:
    counts = (("train", rows - rows // 10), ("test", rows // 10))
    partitions = [
        (split, start, min(start + ROWS_PER_SHARD, count))
        for split, count in counts
        for start in range(0, count, ROWS_PER_SHARD)
    ]
    with temporary_folder(out):
        return in_processes(partial(_write_shard, source=source, out=out), partitions)


def _write_shard(partition: tuple[str, int, int], *, source: Path, out: Path) -> None:
    split, start, stop = partition
    with (source / ROLES[f"{split}_images"]).open("rb") as file:
        file.seek(HEADER + start * PIXELS)
        pixels = pa.py_buffer(file.read((stop - start) * PIXELS))
    with (source / ROLES[f"{split}_labels"]).open("rb") as file:
        file.seek(8 + start)
        labels = np.frombuffer(file.read(stop - start), np.uint8)
    _write_rows(out / f"{split}-{start}", start, pixels, labels)


def _write_rows(path: Path, start: int, pixels: pa.Buffer, labels: Any) -> None:
    kind = pa.binary(PIXELS)
    images = pa.FixedSizeBinaryArray.from_buffers(kind, len(labels), [None, pixels])
    ids = np.arange(start, start + len(labels))
    table = pa.table({"id": ids, "image": images, "label": labels})
    options = {"use_dictionary": ["label"], "write_statistics": ["id", "label"]}
    pq.write_table(table, path, compression="zstd", **options)


def write_png_shards(folder: Path, out: Path) -> float:
    started = time.perf_counter()
    partitions = []
    for split in ("train", "test"):
        paths = sorted((folder / split).glob("*/*.png"))
        for start in range(0, len(paths), ROWS_PER_SHARD):
            partitions.append((split, start, paths[start : start + ROWS_PER_SHARD]))
    listed = time.perf_counter() - started
    with temporary_folder(out):
        return listed + in_processes(partial(_write_png_shard, out=out), partitions)


def _write_png_shard(partition: tuple[str, int, list[Path]], *, out: Path) -> None:
    split, start, paths = partition
    images = np.empty((len(paths), 28, 28), np.uint8)
    for row, path in enumerate(paths):
        with Image.open(path) as image:
            images[row] = np.asarray(image)
    labels = np.array([int(path.parent.name) for path in paths], np.uint8)
    _write_rows(out / f"{split}-{start}", start, pa.py_buffer(images), labels)


def score_shards(shards: list[Path], model: Path, out: Path) -> float:
    with temporary_folder(out):
        return in_processes(partial(_score_shard, model=str(model), out=out), shards)


def _score_shard(shard: Path, *, model: str, out: Path) -> None:
    import onnxruntime as ort

    if model not in _sessions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        _sessions[model] = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    table = pq.read_table(shard, columns=["id", "image"], use_threads=False)
    images = np.frombuffer(table["image"].chunk(0).buffers()[1], np.uint8).reshape(-1, 28, 28)
    outputs = [
        _sessions[model].run(None, {"image": images[start : start + BATCH]})
        for start in range(0, len(images), BATCH)
    ]
    probabilities, prediction = (np.concatenate(batches) for batches in zip(*outputs, strict=True))
    columns = {"id": table["id"], "prediction": prediction, "confidence": probabilities.max(1)}
    pq.write_table(pa.table(columns), out / shard.name, compression="zstd")


_sessions: dict[str, Any] = {}
