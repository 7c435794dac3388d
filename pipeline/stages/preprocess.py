"""Images and labels -> dataset: `train`, `val` and `test` as Parquet shards, written by Ray Data.

    python -m pipeline preprocess --data.source FOLDER

All rows are looked at before one is written.
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
    """Makes the dataset that the settings describe, or finds it, and returns its manifest.

    Raises what `open_source` does, and DataError for rows that are of no use.
    """
    storage, data = Storage(settings.root), settings.data
    source = open_source(data)
    if (count := len(source.class_names or ())) > validation.MAX_CLASSES:
        raise DataError(
            f"{source.name!r} has {count} classes, but labels are uint8: {validation.MAX_CLASSES} at "
            "most. Join some of them."
        )
    splits = _splits(source, data.num_val)
    version = _version(source, splits, data)
    folder = f"datasets/{source.name}/{version}"
    if not settings.force and (done := find(storage, folder, DatasetManifest)):
        say(f"dataset {done.ref} is there already")
        return done
    with connection.connected():
        for rows in source.splits.values():
            resources.require_visible(rows.local_paths)
        resources.require(cpus=1)
        found, later = inspect_splits(source, splits, data.rows_per_shard)
        image = ImageSpec(*source.shape, _class_names(source, found["train"]))
        quarantine = data.on_bad_row == "quarantine"
        # The classes may be known only now.
        for of in found.values():
            of.reject_labels_from(image.num_classes)
        validation.raise_if_invalid(found, image.class_names, quarantine=quarantine)
        with storage.locked(f"{folder}/.lock"):
            resources.require_shared(storage, folder)
            files = partitions.write_shards(
                partition_splits(splits, data.rows_per_shard),
                _write_shards,
                "preprocess",
                fn_kwargs={
                    "target": ShardWriter(storage, folder, settings.force),
                    "image": image,
                    "later": later if any(of.bad for of in found.values()) else None,
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
            manifest = _describe(storage, folder, manifest, found)
            commit(storage, folder, manifest)
    say(f"dataset {manifest.ref}: {', '.join(f'{n:,} {s}' for s, n in manifest.rows.items())}")
    if left_out := _num_rows(manifest.files, REJECTED.rstrip("/")):
        warn(f"{left_out:,} rows were left out; {REJECTED} beside the shards says which and why.")
    return manifest


def _num_rows(files: Sequence[FileEntry], folder: str) -> int:
    return sum(entry.rows or 0 for entry in files if entry.path.startswith(f"{folder}/"))


def _splits(source: Source, num_val: int | None) -> dict[str, RowRange]:
    """The rows of each split; `val` is the last of `train` where it has no files of its own."""
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
    at = rows.num_rows - num_val
    return {
        "train": RowRange(rows, 0, at),
        "val": RowRange(rows, at, rows.num_rows),
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
    policy = [] if data.on_bad_row == "fail" else [data.on_bad_row]
    return digest(*version_inputs, source.caveat, *policy)


def _class_names(source: Source, train: SplitStats) -> tuple[str, ...]:
    """Those the source knows, else one for each label of `train`."""
    return source.class_names or tuple(str(label) for label in range(max(train.highest + 1, 2)))


def _write_shards(
    item: dict[str, Any],
    *,
    target: ShardWriter,
    image: ImageSpec,
    later: dict[str, UInt64Array] | None,
) -> list[dict[str, Any]]:
    """`later` are the hashes of the splits after each; None where no row is bad."""

    def make(piece: Partition) -> EncodedShard:
        block = piece.read()
        if later is not None:
            block, _, _ = validation.validate(block, image.class_names, later[piece.split])
        assert block.labels is not None
        rows = shards.LabeledImages(block.ids, block.images, block.labels.astype(np.uint8))
        return EncodedShard(shards.encode(rows, image), len(block.ids), block.bad)

    return target.write(partitions.unpack(item), make)


def _describe(
    storage: Storage, folder: str, manifest: DatasetManifest, found: dict[str, SplitStats]
) -> DatasetManifest:
    """Writes the summary and the contact sheet beside the shards."""
    image = manifest.image
    summary = {name: of.summary(image.class_names, image.num_pixels) for name, of in found.items()}
    first = shards.read(storage, manifest, manifest.shards("train")[:1])
    more = (
        write_file(
            storage, folder, "summary.json", (json.dumps(summary, indent=2) + "\n").encode()
        ),
        write_file(storage, folder, "contact.png", contact_sheet.contact_sheet(first, image)),
    )
    return manifest.model_copy(update={"files": (*manifest.files, *more)})
