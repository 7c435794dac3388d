"""IDX files -> dataset: `train`, `val` and `test` as Parquet shards, written by Ray Data.

    python -m pipeline preprocess --data.source FOLDER

Ray Data carries the row ranges of shards, not the rows: a task reads its range, writes its shard
whole or not at all, under a name that the range alone decides, and returns the entry for the
manifest. So a retried task changes nothing, and memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray.data

from pipeline import cluster, shards
from pipeline.config import Preprocess
from pipeline.console import progress, say
from pipeline.contract import DataError, ImageSpec, SettingError
from pipeline.manifest import DatasetManifest, FileEntry, commit, digest, find, write_file
from pipeline.sources import Source, open_source
from pipeline.storage import Storage


def preprocess(settings: Preprocess) -> DatasetManifest:
    """Makes the dataset that the settings describe, or finds it, and returns its manifest.

    Raises what `open_source` does, and DataError for labels out of range.
    """
    storage = Storage(settings.root)
    source = open_source(settings.data)
    plan = plan_dataset(source, num_val=settings.data.num_val, rows=settings.data.rows_per_shard)
    folder = f"datasets/{plan.ref}"
    if not settings.force and (done := find(storage, folder, DatasetManifest)):
        say(f"dataset {done.ref} is there already")
        return done
    pieces = list(_pieces(plan, settings.data.rows_per_shard))
    with cluster.connected():
        cluster.require_shared(storage, folder)
        for file in source.files.values():
            cluster.require_seen(file.storage, file.path)
        cluster.require(cpus=1)
        work = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map(
            _write_shard,  # type: ignore[arg-type]
            fn_kwargs={"storage": storage, "source": source, "plan": plan},
        )
        entries = []
        with progress("preprocess", total=sum(plan.rows.values())) as show:
            for entry in cluster.results(work):
                entries.append(FileEntry(**entry))
                show(sum(entry.rows or 0 for entry in entries), "images")
    manifest = plan.model_copy(update={"files": tuple(sorted(entries, key=lambda e: e.path))})
    commit(storage, folder, manifest)
    say(f"dataset {manifest.ref}: {', '.join(f'{n:,} {s}' for s, n in manifest.rows.items())}")
    return manifest


def plan_dataset(source: Source, *, num_val: int | None, rows: int) -> DatasetManifest:
    """The manifest that a source will have, but for its files: splits, classes and version."""
    num_train, *shape = source.files["train_images"].contents.shape
    num_val = num_val or source.num_val or max(1, num_train // 6)
    if num_val >= num_train:
        raise SettingError(
            f"--data.num-val is {num_val}, but there are only {num_train} training images. "
            "Leave some to train on."
        )
    class_names = _class_names(source)
    digests = {role: file.contents.sha256 for role, file in source.files.items()}
    return DatasetManifest(
        name=source.name,
        version=digest(source.name, digests, class_names, num_val, rows, source.caveat),
        caveat=source.caveat,
        image=ImageSpec(shape[0], shape[1], class_names),
        rows={
            "train": num_train - num_val,
            "val": num_val,
            "test": source.files["test_images"].contents.shape[0],
        },
        source=digests,
    )


def _class_names(source: Source) -> tuple[str, ...]:
    """Those the source knows, else one for each label there is; every label is checked."""
    names = source.class_names
    for split in ("train", "test"):
        file = source.files[f"{split}_labels"]
        labels = file.read_rows(0, file.contents.shape[0])
        highest = int(labels.max())
        names = names or tuple(str(label) for label in range(max(highest + 1, 2)))
        if highest >= len(names):
            raise DataError(
                f"Label {labels.argmax()} of the {split} files is {highest}, but {source.name!r} "
                f"has {len(names)} classes: 0 to {len(names) - 1}. Correct the labels."
            )
    assert names
    return names


def _pieces(plan: DatasetManifest, rows: int) -> Iterator[dict[str, Any]]:
    """Row ranges of shards: `first_id` counts over all files, `start` within one file."""
    first_id = 0
    for split, file, start in (
        ("train", "train", 0),
        ("val", "train", plan.rows["train"]),
        ("test", "test", 0),
    ):
        stop = start + plan.rows[split]
        for number, begin in enumerate(range(start, stop, rows)):
            end = min(begin + rows, stop)
            yield {
                "path": f"{split}/part-{number:05}.parquet",
                "file": file,
                "start": begin,
                "stop": end,
                "first_id": first_id + begin - start,
            }
        first_id += plan.rows[split]


def _write_shard(
    piece: dict[str, Any], *, storage: Storage, source: Source, plan: DatasetManifest
) -> dict[str, Any]:
    start, stop, first_id = piece["start"], piece["stop"], piece["first_id"]
    images = source.files[f"{piece['file']}_images"].read_rows(start, stop)
    labels = source.files[f"{piece['file']}_labels"].read_rows(start, stop)
    ids = np.arange(first_id, first_id + stop - start, dtype=np.int64)
    data = shards.encode(shards.Split(ids, images, labels), plan.image)
    entry = write_file(storage, f"datasets/{plan.ref}", piece["path"], data, rows=stop - start)
    return entry.model_dump()
