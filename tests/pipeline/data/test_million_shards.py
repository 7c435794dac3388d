"""A dataset of 10^6 shards: planned, committed, found again and divided, without any pixels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import sys
import time

from pipeline.artifacts.commit import commit, find
from pipeline.artifacts.manifests import DatasetManifest, FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec
from pipeline.data.datasource import ImageDatasource, plan_tasks
from pipeline.data.plan import Plan
from pipeline.data.readers.array_format import ArrayInfo
from pipeline.data.readers.arrays import ArrayFile, ArrayReader
from pipeline.data.readers.rows import Rows

SHARDS = 1_000_000
started = time.monotonic()
storage = Storage(sys.argv[1])
shape = (SHARDS * 10_000, 28, 28)
entry = FileEntry("images.npy", 128 + 784 * shape[0], "0" * 64, shape[0])
images = ArrayFile(storage, entry, ArrayInfo(128, "|u1", shape, "0" * 64), (0, 0))
plan = Plan(Rows((ArrayReader(images, (28, 28, 1), (28, 28)),)), 0, shape[0], 10_000, seed=0)
tasks = plan_tasks(plan, "train", num_cpus=1000)
datasource = ImageDatasource(tasks)
assert sum(task.num_rows for task in tasks) == shape[0]
assert datasource.estimate_inmemory_data_size() > 784 * shape[0]
del tasks, datasource
files = tuple(
    FileEntry(f"train/part-{number:07}-0123456789ab.parquet", number, f"{number:064}", 10_000)
    for number in range(plan.num_shards)
)
image = ImageSpec(28, 28, tuple("0123456789"))
manifest = DatasetManifest(
    name="large", version="0" * 12, image=image, rows={}, source={}, files=files
)
commit(storage, "datasets/large", manifest)
del files, manifest
found = find(storage, "datasets/large", DatasetManifest)
shards = found.shards("train")
assert len(shards) == plan.num_shards >= SHARDS and shards[-1].bytes == len(shards) - 1
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(peak_mib, time.monotonic() - started)
"""


@pytest.mark.slow
def test_a_million_shards_take_a_gibibyte_and_a_minute(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak_mib, seconds = map(float, done.stdout.split())
    assert peak_mib < 1024
    assert seconds < 60
