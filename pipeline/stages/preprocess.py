"""The stage `preprocess`: images and labels -> a dataset of `train`, `val` and `test` shards.

    python -m pipeline preprocess --data.source FOLDER

All rows are validated before any shard is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.arrays import UInt64Array
from pipeline.artifacts.commit import commit, digest, find, write_file
from pipeline.artifacts.manifests import DatasetManifest, FileEntry
from pipeline.artifacts.storage import Storage
from pipeline.cluster import connection, resources
from pipeline.config import Data, Preprocess
from pipeline.console import say, warn
from pipeline.contract import ImageSpec
from pipeline.data import contact_sheet, partitions, shards, validation
from pipeline.data.inspection import RowRange, inspect_splits, partition_splits
from pipeline.data.partitions import REJECTED, EncodedShard, Partition, ShardWriter
from pipeline.data.sources import Source, open_source
from pipeline.data.validation import SplitStats
from pipeline.errors import DataError, SettingError


def preprocess(settings: Preprocess) -> DatasetManifest:
    """Write the dataset that the settings describe, unless it already exists; return its manifest.

    Raise DataError if rows are invalid and `on_bad_row` is `fail`; see also `open_source`.
    """
    storage = Storage(settings.root)
    data = settings.data
    source = open_source(data)
    num_classes = len(source.class_names or ())
    if num_classes > validation.MAX_CLASSES:
        raise DataError(
            f"{source.name!r} has {num_classes} classes, but labels are uint8: "
            f"{validation.MAX_CLASSES} at most. Merge some of them."
        )
    splits = _splits(source, data.num_val)
    version = _version(source, splits, data)
    folder = f"datasets/{source.name}/{version}"
    existing = None if settings.force else find(storage, folder, DatasetManifest)
    if existing:
        say(f"dataset {existing.ref} already exists")
        return existing
    with connection.connected():
        for rows in source.splits.values():
            resources.require_visible(rows.local_paths)
        resources.require(cpus=1)
        stats, later_hashes = inspect_splits(source, splits, data.rows_per_shard)
        image = ImageSpec(*source.shape, _class_names(source, stats["train"]))
        # If the source does not name its classes, they are known only now.
        for split_stats in stats.values():
            split_stats.reject_labels_from(image.num_classes)
        quarantine = data.on_bad_row == "quarantine"
        validation.raise_if_invalid(stats, image.class_names, quarantine=quarantine)
        has_rejects = any(split_stats.rejects for split_stats in stats.values())
        with storage.locked(f"{folder}/.lock"):
            resources.require_shared(storage, folder)
            files = partitions.write_shards(
                partition_splits(splits, data.rows_per_shard),
                _write_shards,
                "preprocess",
                fn_kwargs={
                    "writer": ShardWriter(storage, folder, settings.force),
                    "image": image,
                    "later_hashes": later_hashes if has_rejects else None,
                },
            )
            manifest = DatasetManifest(
                name=source.name,
                version=version,
                caveat=source.caveat,
                image=image,
                rows={split: _num_rows(files, split) for split in splits},
                source=dict(source.digests),
                files=files,
            )
            manifest = _add_summary(storage, folder, manifest, stats)
            commit(storage, folder, manifest)
    counts = ", ".join(f"{num_rows:,} {split}" for split, num_rows in manifest.rows.items())
    say(f"dataset {manifest.ref}: {counts}")
    num_rejected = _num_rows(manifest.files, REJECTED.rstrip("/"))
    if num_rejected:
        warn(
            f"{num_rejected:,} rows were rejected. The files in {REJECTED} next to the shards list "
            "their ids and the reasons."
        )
    return manifest


def _num_rows(files: Sequence[FileEntry], folder: str) -> int:
    """Return the number of rows of the files in this folder."""
    return sum(entry.rows or 0 for entry in files if entry.path.startswith(f"{folder}/"))


def _splits(source: Source, num_val: int | None) -> dict[str, RowRange]:
    """Return the rows of each split. If `val` has no files, it is the end of `train`."""
    whole = {name: RowRange(rows, 0, rows.num_rows) for name, rows in source.splits.items()}
    if "val" in whole:
        return {name: whole[name] for name in ("train", "val", "test")}
    rows = source.splits["train"]
    num_val = num_val or source.num_val or max(1, rows.num_rows // 6)
    if num_val >= rows.num_rows:
        raise SettingError(
            f"--data.num-val is {num_val}, but there are only {rows.num_rows} training images. "
            "Leave some to train on."
        )
    num_train = rows.num_rows - num_val
    return {
        "train": RowRange(rows, 0, num_train),
        "val": RowRange(rows, num_train, rows.num_rows),
        "test": whole["test"],
    }


def _version(source: Source, splits: dict[str, RowRange], data: Data) -> str:
    num_val = splits["val"].stop - splits["val"].start
    version_inputs = [
        source.name,
        dict(source.digests),
        source.class_names,
        num_val,
        data.rows_per_shard,
    ]
    # The default is left out: versions are the same as before this setting was added.
    policy = [] if data.on_bad_row == "fail" else [data.on_bad_row]
    return digest(*version_inputs, source.caveat, *policy)


def _class_names(source: Source, train: SplitStats) -> tuple[str, ...]:
    """Return the classes of the source; if it has none, one per label of `train`, at least two."""
    num_labels = max(train.highest_label + 1, 2)
    return source.class_names or tuple(str(label) for label in range(num_labels))


def _write_shards(
    item: dict[str, Any],
    *,
    writer: ShardWriter,
    image: ImageSpec,
    later_hashes: dict[str, UInt64Array] | None,
) -> list[dict[str, Any]]:
    """Write the shards of a task's partitions.

    `later_hashes` are those of `inspect_splits`, or None if all rows are valid: validation is then
    not repeated.
    """

    def encode(partition: Partition) -> EncodedShard:
        batch = partition.read()
        if later_hashes is not None:
            batch, _, _ = validation.validate(
                batch, image.class_names, later_hashes[partition.split]
            )
        assert batch.labels is not None
        rows = shards.LabeledImages(batch.ids, batch.images, batch.labels.astype(np.uint8))
        return EncodedShard(shards.encode(rows, image), len(batch.ids), batch.rejects)

    return writer.write(partitions.unpack(item), encode)


def _add_summary(
    storage: Storage, folder: str, manifest: DatasetManifest, stats: dict[str, SplitStats]
) -> DatasetManifest:
    """Write the summary and the contact sheet; return the manifest with their entries."""
    image = manifest.image
    summary = {
        split: split_stats.summary(image.class_names, image.num_pixels)
        for split, split_stats in stats.items()
    }
    summary_json = json.dumps(summary, indent=2) + "\n"
    first_shard = shards.read(storage, manifest, manifest.shards("train")[:1])
    sheet = contact_sheet.contact_sheet(first_shard, image)
    entries = (
        write_file(storage, folder, "summary.json", summary_json.encode()),
        write_file(storage, folder, "contact.png", sheet),
    )
    return manifest.model_copy(update={"files": (*manifest.files, *entries)})
