"""The stage `preprocess`: images and labels -> a dataset of `train`, `val` and `test` shards.

    python -m pipeline preprocess --data.source FOLDER

Rows are validated as they are written, later splits first, because an image of a later split must
not occur in an earlier one. Nothing is committed unless all rows are valid, or are to be
quarantined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.arrays import UInt64Array
from pipeline.artifacts.commit import digest, find
from pipeline.artifacts.manifests import DatasetManifest
from pipeline.artifacts.replacement import Replacement
from pipeline.artifacts.storage import Storage
from pipeline.cluster import connection, resources
from pipeline.cluster.workers import require_workers
from pipeline.config import Data, Preprocess
from pipeline.console import say, warn
from pipeline.contract import ImageSpec
from pipeline.data import splits, validation
from pipeline.data.dataset_writer import DatasetWriter, Output, commit_dataset, write_pool
from pipeline.data.image_hashes import NO_HASHES, HashSet
from pipeline.data.layout import SPLITS
from pipeline.data.shard_writer import REJECTED
from pipeline.data.sources import Source, open_source
from pipeline.data.splits import Pool
from pipeline.errors import DataError
from pipeline.stages import figures
from pipeline.stages.figures import measured

LAYOUT = 3
"""Version of how files are decoded, prepared, labelled, and divided among splits and shards; part
of every dataset's version."""


@measured
def preprocess(settings: Preprocess) -> DatasetManifest:
    """Write the dataset that the settings describe, unless it already exists; return its manifest.

    Raise DataError if rows are invalid and `on_bad_row` is `fail`; see also `open_source`.
    """
    storage = Storage(settings.root)
    data = settings.data
    source = open_source(data, force=settings.force)
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
        require_workers(1, wait_s=settings.wait)
        with storage.locked(f"{folder}/.lock"):
            resources.require_shared(storage, folder)
            num_rows = sum(rows.num_rows for rows in source.splits.values())
            figures.begin(storage, folder, rows=num_rows, nodes=resources.num_nodes())
            image = ImageSpec(*source.shape, source.class_names, source.preparation)
            replacement = Replacement(storage, folder, DatasetManifest)
            written, new = Output(), set[str]()
            for pool in pools:
                pool = _complete(pool, counts, data, written.hashes)
                writer = DatasetWriter(storage, folder, image, pool.rule, pool.plan.num_shards)
                for output, is_new in write_pool(pool, writer, keep=not settings.force):
                    written.merge(output)
                    new |= {entry.path for entry in output.entries} if is_new else set()
            assert written.num_rows == num_rows
            quarantine = data.on_bad_row == "quarantine"
            try:
                stats = {split: written.stats[split] for split in SPLITS}
                validation.raise_if_invalid(stats, image.class_names, quarantine=quarantine)
            except DataError:
                replacement.discard(new)
                raise
            manifest = DatasetManifest(
                name=source.name,
                version=version,
                caveat=source.caveat,
                image=image,
                rows={},
                source=dict(source.digests),
            )
            manifest = commit_dataset(storage, manifest, written, replacement)
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
    pool: Pool, counts: Mapping[str, Any], data: Data, hashes: Mapping[str, Sequence[UInt64Array]]
) -> Pool:
    """Return a pool that knows its later splits; `hashes` are those of the pools written before."""
    later = np.concatenate([NO_HASHES, *(part for own in hashes.values() for part in own)])
    later.sort()
    rule = replace(pool.rule, later_hashes=dict.fromkeys(SPLITS, HashSet(later)))
    return splits.assign_splits(pool._replace(rule=rule), counts, data.seed)
