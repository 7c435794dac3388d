"""The stage `preprocess`: images and labels -> a dataset of `train`, `val` and `test` shards.

    python -m pipeline preprocess --data.source FOLDER

Rows are validated as they are written, later splits first, because an image of a later split must
not occur in an earlier one. Nothing is committed unless all rows are valid, or are to be
quarantined.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
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
from pipeline.data import contact_sheet, shards, splits, validation
from pipeline.data.dataset_writer import DatasetWriter, write_pool
from pipeline.data.layout import SPLITS
from pipeline.data.shard_writer import REJECTED
from pipeline.data.sources import Source, open_source
from pipeline.data.splits import NO_HASHES, Pool
from pipeline.data.validation import SplitStats

LAYOUT = 2
"""Version of how rows are divided among splits and shards; part of every dataset's version."""


def preprocess(settings: Preprocess) -> DatasetManifest:
    """Write the dataset that the settings describe, unless it already exists; return its manifest.

    Raise DataError if rows are invalid and `on_bad_row` is `fail`; see also `open_source`.
    """
    storage = Storage(settings.root)
    data = settings.data
    source = open_source(data)
    version = _version(source, data)
    folder = f"datasets/{source.name}/{version}"
    existing = None if settings.force else find(storage, folder, DatasetManifest)
    if existing:
        say(f"dataset {existing.ref} already exists")
        return existing
    counts = splits.draw_counts(source, data)
    pools = splits.make_pools(source, data)
    with connection.connected():
        for rows in source.splits.values():
            resources.require_visible(rows.local_paths)
        resources.require(cpus=1)
        with storage.locked(f"{folder}/.lock"):
            resources.require_shared(storage, folder)
            image = ImageSpec(*source.shape, source.class_names, source.preparation)
            writing = _Writing(storage, folder, image, force=settings.force)
            for pool in pools:
                writing.write(_complete(pool, counts, data, writing.hashes))
            stats = {split: writing.stats[split] for split in SPLITS}
            quarantine = data.on_bad_row == "quarantine"
            try:
                validation.raise_if_invalid(stats, image.class_names, quarantine=quarantine)
            except BaseException:
                writing.delete_new()
                raise
            manifest = DatasetManifest(
                name=source.name,
                version=version,
                caveat=source.caveat,
                image=image,
                rows={split: stats[split].rows for split in SPLITS},
                source=dict(source.digests),
                files=tuple(sorted(writing.entries, key=lambda entry: entry.path)),
            )
            manifest = _add_summary(storage, folder, manifest, stats)
            commit(storage, folder, manifest)
    described = ", ".join(f"{num_rows:,} {split}" for split, num_rows in manifest.rows.items())
    say(f"dataset {manifest.ref}: {described}")
    num_rejected = sum(e.rows or 0 for e in manifest.files if e.path.startswith(REJECTED))
    if num_rejected:
        warn(
            f"{num_rejected:,} rows were rejected. The files in {REJECTED} next to the shards list "
            "their ids and the reasons."
        )
    return manifest


def _version(source: Source, data: Data) -> str:
    return digest(
        LAYOUT,
        source.name,
        dict(source.digests),
        source.class_names,
        source.shape,
        vars(source.preparation),
        [data.num_val, source.num_last_val, data.split_by, data.seed],
        data.rows_per_shard,
        data.on_bad_row,
        source.caveat,
    )


def _complete(
    pool: Pool, counts: Mapping[str, Any], data: Data, hashes: Mapping[str, UInt64Array]
) -> Pool:
    """Return a pool that knows its later splits; `hashes` are those of the pools written before."""
    later = np.sort(np.concatenate([NO_HASHES, *hashes.values()]))
    rule = replace(pool.rule, later_hashes=dict.fromkeys(SPLITS, later))
    pool = pool._replace(rule=rule)
    if rule.column:
        return splits.hash_splits(pool)
    if rule.split == "train" and counts:
        return splits.draw_splits(pool, counts, data.seed)
    return pool


class _Writing:
    """The files of a dataset as they are written, and the statistics of its splits."""

    def __init__(self, storage: Storage, folder: str, image: ImageSpec, *, force: bool) -> None:
        self.storage, self.folder, self.image, self.force = storage, folder, image, force
        self.entries = list[FileEntry]()
        self.stats = {split: SplitStats() for split in SPLITS}
        self.hashes = dict[str, UInt64Array]()
        self._new = list[str]()

    def write(self, pool: Pool) -> None:
        """Write the shards of a pool."""
        writer = DatasetWriter(self.storage, self.folder, self.image, pool)
        hashes: dict[str, list[UInt64Array]] = {split: [NO_HASHES] for split in pool.rule.splits}
        for output, is_new in write_pool(pool, writer, keep=not self.force):
            self.entries += output.entries
            if is_new:
                self._new += [entry.path for entry in output.entries]
            for split, stats in output.stats.items():
                self.stats[split].add(stats)
            for split, own in output.hashes.items():
                hashes[split] += own
        self.hashes |= {split: np.concatenate(parts) for split, parts in hashes.items()}

    def delete_new(self) -> None:
        """Delete the files that were written now."""
        for path in self._new:
            self.storage.delete(f"{self.folder}/{path}")


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
